"""A task that cannot run fails by itself; the engine and its other tasks go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import InvalidTaskError, TaskCanceledError, UnsupportedError
from rhapsody.backends import ConcurrentExecutionBackend

from .engine import Engine, executable, function

pytestmark = pytest.mark.usefixtures("leaves_nothing")


def options(**given: Any) -> dict[str, Any]:
    return {"task_backend_specific_kwargs": given}


@pytest.fixture
async def engine(work_dir: Path) -> AsyncIterator[Engine]:
    backend = ConcurrentExecutionBackend(max_workers=2)
    yield Engine(backend)
    await backend.shutdown()


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown option": (executable("bad", "true", **options(colour="red")), UnsupportedError, "colour"),
    "pre_exec": (executable("bad", "true", **options(pre_exec=["module load x"])), UnsupportedError, "pre_exec"),
    "process_template": (function("bad", int, **options(process_template={})), UnsupportedError, "process_template"),
    "ranks of a function": (function("bad", int, **options(ranks=4096)), UnsupportedError, "ranks"),
    "no ranks": (executable("bad", "true", **options(ranks=0)), InvalidTaskError, "ranks"),
    "environment twice": (executable("bad", "true", **options(env={}, environment={})), InvalidTaskError, "twice"),
    "options of no kind": (executable("bad", "true", task_backend_specific_kwargs=[1]), InvalidTaskError, "mapping"),
    "prompt": ({"uid": "bad", "prompt": "why?", "function": None, "executable": None}, UnsupportedError, "prompt"),
    "no kind": ({"uid": "bad"}, InvalidTaskError, "neither a function nor an executable"),
    "arguments of no kind": ({"uid": "bad", "executable": "true", "arguments": 5}, InvalidTaskError, "arguments"),
    "no uid": ({"function": int}, InvalidTaskError, "no uid"),
    "its own name": (executable("bad", "true", **options(cwd=5)), InvalidTaskError, "task 'bad'"),
    "its own name at submit": (executable("bad", "true", **options(colour="red")), UnsupportedError, "task bad:"),
}


@pytest.mark.parametrize("case", BAD)
async def test_refused_task_fails_alone(engine: Engine, case: str) -> None:
    """A refused task is FAILED with the reason in its dict; those beside it run."""
    bad, kind, text = BAD[case]
    bad = dict(bad)  # which is written into
    _, good, shown = await engine.run(bad, function("good.1", pow, 2, 5), executable("good.2", "echo", "here"))
    assert (bad["state"], good["return_value"], shown["stdout"]) == ("FAILED", 32, "here\n")
    assert isinstance(bad["exception"], kind)
    assert text in str(bad["exception"])
    assert text in bad["stderr"]


async def test_shell_on_functions_warns_once(engine: Engine) -> None:
    """A function with shell=True runs as it is, with one warning."""
    tasks = [function(f"task.{i}", pow, 2, i, **options(shell=True)) for i in range(3)]
    with pytest.warns(RuntimeWarning, match="ignores shell=True") as warned:
        await engine.run(*tasks)
    assert [task["return_value"] for task in tasks] == [1, 2, 4]
    assert len(warned) == 1


async def test_links_between_tasks_are_refused(engine: Engine) -> None:
    """A backend that does not declare that it links files refuses to."""
    backend = engine.backend
    assert not backend.supports_implicit_data_linking
    assert not backend.supports_explicit_data_linking
    source, target = function("task.1", int), function("task.2", int)
    with pytest.raises(UnsupportedError, match=r"task\.2.*links no files"):
        backend.link_implicit_data_deps(source, target)
    with pytest.raises(UnsupportedError, match=r"task\.2.*links no files"):
        backend.link_explicit_data_deps(source, target, file_name="a.txt")


async def test_env_is_the_environment(engine: Engine) -> None:
    """`env` and `cwd` beside a task are its environment and folder."""
    (task,) = await engine.run(
        executable("task.1", "sh", "-c", "echo $COLOUR; pwd", **options(env={"COLOUR": "red"}, cwd="/"))
    )
    assert task["stdout"] == "red\n/\n"


async def test_split_words_in_a_shell(engine: Engine) -> None:
    """With shell=True operators among split words work, and quoted words arrive as they were."""
    shell = options(shell=True)
    both, program, file = await engine.run(
        executable("task.1", "echo", "a", "&&", "echo", "b  c", "2>/dev/null", "|", "tr", "a-c", "A-C", **shell),
        executable("task.2", "python3", "-c", "print(1 and '$HOME')", **shell),
        executable("task.3", "echo", "a", ">", "x", ";", "echo", "b", ">>x;", "cat", "x", **shell),
    )
    assert (both["stdout"], program["stdout"]) == ("a\nB  C\n", "$HOME\n")
    assert file["stdout"] == "a\nb\n"


async def test_unstoppable_function_is_canceled(engine: Engine) -> None:
    """A function in a thread is CANCELED at once, and its late end is dropped."""
    gate = threading.Event()
    tasks = [function("task.1", gate.wait, 60), function("task.2", pow, 2, 5)]
    await engine.submit(*tasks)
    while ("task.1", "RUNNING") not in engine.reports:
        await asyncio.sleep(0.01)
    assert await engine.backend.cancel_task("task.1") is True
    await asyncio.wait_for(engine.ended["task.1"], 30)
    assert isinstance(tasks[0]["exception"], TaskCanceledError)
    gate.set()
    await engine.run(*(function(f"later.{i}", int) for i in range(50)))
    assert [state for uid, state in engine.reports if uid == "task.1"] == ["RUNNING", "CANCELED"]


async def test_uid_of_an_abandoned_task(engine: Engine) -> None:
    """A task gets its own result where one of the same uid was left to itself and ends after it."""
    gate = threading.Event()
    await engine.submit(function("task.1", gate.wait, 60))
    while ("task.1", "RUNNING") not in engine.reports:
        await asyncio.sleep(0.01)
    await engine.backend.cancel_task("task.1")
    await asyncio.wait_for(engine.ended["task.1"], 30)
    second, third = function("task.1", pow, 2, 5), function("task.1", pow, 2, 6)
    await engine.run(second)
    gate.set()
    await engine.run(third)
    assert (second["return_value"], third["return_value"]) == (32, 64)
    assert [state for _, state in engine.reports if state != "RUNNING"] == ["CANCELED", "DONE", "DONE"]


async def test_errors_name_the_engines_uid(engine: Engine) -> None:
    """The error of a task has the uid that the engine knows."""
    (task,) = await engine.run(executable("sim.0007", "sh", "-c", "echo why >&2; exit 3"))
    assert task["exception"].task_uid == "sim.0007"
    assert str(task["exception"]).startswith("task sim.0007: exit code 3")


async def test_uid_of_any_kind(engine: Engine) -> None:
    """A uid that is no text names its task as text, for cancel too."""
    (task,) = await engine.run(function(7, pow, 2, 5))  # type: ignore[arg-type]  # an engine's own choice
    assert task["return_value"] == 32
    await engine.submit(executable(8, "sleep", "600"))  # type: ignore[arg-type]  # an engine's own choice
    assert await engine.backend.cancel_task(8) is True  # type: ignore[arg-type]  # an engine's own choice


async def test_captured_output_names(engine: Engine, work_dir: Path) -> None:
    """Captured output is in UID.stdout and UID.stderr of the engine's folder, and the error names them."""
    engine.backend._work_dir = str(work_dir / "engine.0000")
    (task,) = await engine.run(executable("task.1", "sh", "-c", "echo out; echo err >&2; exit 3", capture_stdio=True))
    folder = work_dir / "engine.0000"
    assert (task["stdout"], task["stderr"]) == (str(folder / "task.1.stdout"), str(folder / "task.1.stderr"))
    assert [path.read_text() for path in sorted(folder.iterdir())] == ["err\n", "out\n"]
    assert task["exception"].paths == (task["stdout"], task["stderr"])
