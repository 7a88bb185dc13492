"""What a task changes is not there for the next, and what the program changes is there for its tasks."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
import textwrap
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import ComputeTask

from ..local import KINDS, local, run

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="unset")
NAME = "RHAPSODY_TEST_LEFT_BEHIND"


def change(text: str) -> str:
    """Set a context variable; return what it was."""
    before = VARIABLE.get()
    VARIABLE.set(text)
    return before


async def change_later(text: str) -> str:
    await asyncio.sleep(0)
    return change(text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", [change, change_later])
async def test_context_variables_end_with_task(kind: str, function: Any) -> None:
    """What one task sets, the next on its worker does not see."""
    tasks = await run(local(kind, 1), *(ComputeTask(function=function, args=(f"{n}",)) for n in range(20)))
    assert {task.result().return_value for task in tasks} == {"unset"}


@pytest.mark.parametrize("function", [change, change_later])
async def test_threads_have_the_submitter_s_context(function: Any) -> None:
    """A function in a thread sees the context variables as they were when it was submitted."""
    async with local("threads", 1) as session:
        found = []
        for text in ("first", "second"):
            VARIABLE.set(text)
            tasks = [ComputeTask(function=function, args=("other",)) for _ in range(10)]
            await session.submit_tasks(tasks)
            VARIABLE.set("later")
            await session.wait_tasks(tasks)
            found += [task.result().return_value for task in tasks]
    assert found == ["first"] * 10 + ["second"] * 10


def leave_behind(folder: str) -> None:
    os.chdir(folder)
    os.environ[NAME] = "1"
    del os.environ["PATH"]


def observed() -> tuple[str, str | None, bool]:
    return str(Path.cwd()), os.environ.get(NAME), "PATH" in os.environ


async def test_folder_and_variables_are_put_back(tmp_path: Path) -> None:
    """A change of the folder or of a variable, by a task that ends or raises, does not reach the next."""
    gone = tmp_path / "gone"
    gone.mkdir()
    tasks = [
        ComputeTask(function=leave_behind, args=(str(tmp_path),)),
        ComputeTask(function=observed),
        ComputeTask(function=leave_behind, args=("/no/such/folder",)),
        ComputeTask(function=observed),
    ]
    await run(local("processes", 1), *tasks)
    assert [tasks[1].return_value, tasks[3].return_value] == [(str(Path.cwd()), None, True)] * 2


def threads_of_libraries() -> list[str | None]:
    return [os.environ.get(f"{name}_NUM_THREADS") for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")]


async def test_libraries_take_a_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers share the cores; what the user has set stays."""
    for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR"):
        monkeypatch.delenv(f"{name}_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    (task,) = await run(local("processes", 1), ComputeTask(function=threads_of_libraries))
    cores = str(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else str(os.cpu_count())
    assert task.return_value == [cores, cores, "7", cores]


async def test_workers_follow_the_search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is put on `sys.path` while workers run is on theirs."""
    (tmp_path / "rhapsody_test_added.py").write_text("def answer(): return 42\n")
    async with local("processes", 1) as session:
        first = ComputeTask(function=pow, args=(2, 2))
        await session.submit_tasks([first])
        await first
        monkeypatch.syspath_prepend(str(tmp_path))
        added = importlib.import_module("rhapsody_test_added")
        task = ComputeTask(function=added.answer)
        await session.submit_tasks([task])
        assert (await task).return_value == 42


async def test_workers_follow_a_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the program has reloaded a module, tasks of its functions, and of those that use it, run the new code."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "rhapsody_test_inner.py").write_text("def answer(): return 1\n")
    (tmp_path / "rhapsody_test_outer.py").write_text(
        "import rhapsody_test_inner\ndef outer(): return rhapsody_test_inner.answer()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    outer = importlib.import_module("rhapsody_test_outer")
    inner = outer.rhapsody_test_inner
    async with local("processes", 1) as session:
        found = []
        for answer in (1, 20, 300):
            (tmp_path / "rhapsody_test_inner.py").write_text(f"def answer(): return {answer}\n")
            importlib.reload(inner)
            tasks = [ComputeTask(function=function) for function in (inner.answer, outer.outer)]
            await session.submit_tasks(tasks)
            await session.wait_tasks(tasks)
            found.append([task.result().return_value for task in tasks])
    assert found == [[1, 1], [20, 20], [300, 300]]


SCRIPT = """
import asyncio, os, sys
sys.path.insert(0, "lib")
import rhapsody_test_relative
os.chdir("/")
from rhapsody.api import ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend

async def main():
    async with Session(backends=[ConcurrentExecutionBackend(executor="processes", max_workers=1)]) as session:
        task = ComputeTask(function=rhapsody_test_relative.flags)
        await session.submit_tasks([task])
        print((await task).return_value == rhapsody_test_relative.flags(), rhapsody_test_relative.flags())

asyncio.run(main())
"""


def test_flags_and_relative_entries_are_followed(tmp_path: Path) -> None:
    """Workers run with the program's flags, and find what it imported from a relative folder before a chdir."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "rhapsody_test_relative.py").write_text(
        "import sys\ndef flags(): return sys.flags.optimize, sys.warnoptions, sys._xoptions.get('answer')\n"
    )
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, "-O", "-W", "error::UserWarning", "-X", "answer=42", "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True (1, ['error::UserWarning'], '42')\n"
