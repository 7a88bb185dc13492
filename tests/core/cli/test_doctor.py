"""`rhapsody doctor`."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from rhapsody.cli import _examine
from rhapsody.cli.doctor import _each_once, _follow, environment_problems
from rich.console import Console

from .conftest import HEALTHY, Environment, install, rhapsody


def examined(environment: Environment, *arguments: str) -> dict[str, Any]:
    done = rhapsody("doctor", "--json", *arguments, environment=environment, check=False)
    report: dict[str, Any] = json.loads(done.stdout)
    wrong = bool(report["environment"] or [row for row in report["backends"] if row["problem"]])
    assert done.returncode == wrong, "the exit status says whether something is wrong"
    return report


def test_doctor_times_both_kinds(environment: Environment) -> None:
    """`doctor` runs and times a function and an executable."""
    report = examined(environment, "concurrent")
    (row,) = report["backends"]
    assert row["problem"] is None
    assert set(row["seconds"]) == {"load", "start", "function", "executable", "shutdown"}
    assert all(0 <= seconds < 60 for seconds in row["seconds"].values())


def test_doctor_shows_people_a_table(environment: Environment) -> None:
    """`doctor` shows its table to a person."""
    text = rhapsody("doctor", "concurrent", environment=environment).stdout
    assert "the backend is well" in text
    assert any(line.startswith("concurrent ") and line.endswith("well") for line in text.splitlines())


def test_doctor_examines_all_once(environment: Environment) -> None:
    """`doctor` without names examines what is installed, an alias once."""
    install(environment, "healthy", HEALTHY)
    with (Path(environment["PYTHONPATH"]) / "healthy_distribution-1.2.3.dist-info" / "entry_points.txt").open(
        "a"
    ) as file:
        file.write("robust = healthy_backend:Backend\n")
    path = list(sys.path)
    sys.path.insert(0, environment["PYTHONPATH"])
    try:
        names = _each_once()
    finally:
        sys.path[:] = path
    assert "healthy" in names
    assert "robust" not in names
    assert "concurrent" in names


SICK = {
    "start": (
        """
        class Backend(Healthy):
            @hookimpl
            async def rhapsody_init(self, context):
                raise RuntimeError("the licence server is down")
        """,
        "the licence server is down",
    ),
    "exit": ("import os\nos._exit(3)", "its process ended with exit code 3"),
    "killed": ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "its process ended with signal SIGKILL"),
    "wrong": (
        """
        class Backend(Healthy):
            @hookimpl
            def rhapsody_submit(self, batch):
                outcomes = [Outcome(task.uid, TaskState.DONE, return_value=(41, "3.0")) for task in batch.tasks]
                self._context.events.put(outcomes)
        """,
        "a function returned 41, not 42",
    ),
    "program": (
        """
        class Backend(Healthy):
            @hookimpl
            def rhapsody_submit(self, batch):
                if batch.tasks[0].function is not None:
                    return super().rhapsody_submit(batch)
                outcomes = [Outcome(task.uid, TaskState.DONE, stdout="", exit_code=0) for task in batch.tasks]
                self._context.events.put(outcomes)
        """,
        "`echo rhapsody` gave ''",
    ),
    "old": ("class Backend(Healthy):\n    interface_version = 0", "upgrade its distribution"),
    "nothing": ("Backend = None", "is not a subclass of"),
    "missing": ("import a_module_that_nobody_has", "reinstall or upgrade it"),
    "shutdown": (
        """
        class Backend(Healthy):
            @hookimpl
            async def rhapsody_shutdown(self):
                await super().rhapsody_shutdown()
                raise OSError("a socket is left")
        """,
        "a socket is left",
    ),
}  # fmt: skip


PREAMBLE = """
from rhapsody.backends.concurrent import ConcurrentExecutionBackend
from rhapsody.plugin import Outcome, TaskState, hookimpl

class Healthy(ConcurrentExecutionBackend):
    def __init__(self, name="sick"):
        super().__init__(name=name)

"""


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the doctor says of all of them, and of a healthy one after them."""
    folder = tmp_path_factory.mktemp("ward")
    for name in ("site", "here"):
        (folder / name).mkdir()
    environment = dict(os.environ) | {"PYTHONPATH": str(folder / "site"), "TMPDIR": str(folder)}
    for name, (body, _) in SICK.items():
        install(environment, name, PREAMBLE + textwrap.dedent(body))
    return {row["name"]: row for row in examined(environment, *SICK, "concurrent")["backends"]}


@pytest.mark.parametrize("sickness", SICK)
def test_doctor_names_the_fault(sickness: str, ward: dict[str, dict[str, Any]]) -> None:
    """`doctor` says what is wrong with a broken backend."""
    assert SICK[sickness][1] in f"{ward[sickness]['problem']}\n{ward[sickness]['remedy']}"


def test_doctor_examines_the_others(ward: dict[str, dict[str, Any]]) -> None:
    """`doctor` examines the others whatever one of them does."""
    assert ward["concurrent"]["problem"] is None


def test_doctor_ends_a_hanging_backend(environment: Environment) -> None:
    """`doctor` ends a backend that hangs."""
    install(environment, "slow", "import time\ntime.sleep(1000)")
    began = time.monotonic()
    (row,) = examined(environment, "slow", "--timeout", "3")["backends"]
    assert "did not come to its end within 3 s (during: load)" in row["problem"]
    assert time.monotonic() - began < 60
    assert not [process for process in psutil.process_iter() if "slow" in _arguments(process)]


def test_interrupt_ends_a_hanging_import(environment: Environment, tmp_path: Path) -> None:
    """One SIGINT ends the examination of a backend whose import hangs."""
    reader, writer = os.pipe()
    install(environment, "stuck", f"import os, time\nos.write({writer}, b'.')\ntime.sleep(1000)")
    process = subprocess.Popen(
        [sys.executable, "-m", "rhapsody.cli._examine", "stuck", str(tmp_path / "report"), str(tmp_path)],
        env=environment,
        pass_fds=[writer],
        stderr=subprocess.DEVNULL,
    )
    try:
        os.close(writer)
        assert os.read(reader, 1) == b".", "the import has begun"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
    finally:
        os.close(reader)
        process.kill()
        process.wait()


WAITING = {
    "coroutine": (
        "await asyncio.sleep(0.6)  # for the queue",
        r"rhapsody_init waits in rhapsody_init, .*: await asyncio.sleep\(0.6\)  # for the queue",
    ),
    "thread": (
        "await context.in_thread(time.sleep, 0.6)",
        r"rhapsody_init waits for a function in a thread, in call, .*",
    ),
    "blocked": ("time.sleep(0.6)", r"the event loop is blocked in rhapsody_init, .*: time.sleep\(0.6\)"),
}


@pytest.mark.parametrize("how", WAITING)
def test_doctor_says_what_it_waits_for(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that takes long names the hook and the line of the backend at which it waits."""
    line, says = WAITING[how]
    environment = {"PYTHONPATH": str(tmp_path)}
    init = f"\n    @hookimpl\n    async def rhapsody_init(self, context):\n        {line}\n"
    init += "        await super().rhapsody_init(context)\n"
    body = f"import asyncio, time\n{PREAMBLE}\nclass Backend(Healthy):{init}"
    install(environment, f"late{how}", body)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(_examine, "_LONG", 0.1)
    monkeypatch.setattr(_examine, "_ANSWER", 0.1)
    asyncio.run(_examine.Examination(f"late{how}", tmp_path / "report", str(tmp_path)).run())
    lines = [json.loads(line) for line in (tmp_path / "report").read_text().splitlines()]
    waits = [line["waits"] for line in lines if line["stage"] == "start" and "waits" in line]
    assert any(re.fullmatch(says, each) for each in waits), waits
    assert lines[-1] == {"stage": "end"}


def test_doctor_shows_what_it_waits_for(tmp_path: Path) -> None:
    """What an examination waits for is shown once, while it goes on."""
    said = json.dumps({"stage": "start", "waits": "rhapsody_init waits"})
    script = f"echo '{said}' > {tmp_path}/report; read line"
    out = Console(file=io.StringIO())
    with subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE) as process:
        assert _follow(process, tmp_path / "report", 1.2, "late", out) is None
    assert out.file.getvalue() == "late, start: rhapsody_init waits\n"  # type: ignore[attr-defined]  # a StringIO


def test_doctor_takes_options(environment: Environment) -> None:
    """`doctor -o` gives arguments to the backend that it examines; what is none, or for none, is refused."""
    done = rhapsody("doctor", "--json", "concurrent", "-o", "max_workers=0", environment=environment, check=False)
    assert "max_workers" in json.loads(done.stdout)["backends"][0]["problem"]
    for arguments in (["-o", "max_workers=1"], ["concurrent", "-o", "max_workers"]):
        done = rhapsody("doctor", *arguments, environment=environment, check=False)
        assert done.returncode == 2
        assert "name it, as in" in done.stderr or "is not KEY=VALUE" in done.stderr


def test_doctor_helps_with_names(environment: Environment) -> None:
    """`doctor` says how to get a backend that is missing or misspelt."""
    missing, misspelt = examined(environment | {"RHAPSODY_DISABLE_BACKENDS": "dask"}, "dask", "concurent")["backends"]
    assert "RHAPSODY_DISABLE_BACKENDS" in missing["problem"]
    assert "did you mean concurrent" in misspelt["problem"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"RHAPSODY_LOG_LEVEL": "loud"}, "it must be one of DEBUG, INFO"),
        ({"RHAPSODY_BACKEND": "abacus"}, "no such backend is installed"),
        ({"RHAPSODY_WORK_DIR": "/dev/null/folder"}, "set RHAPSODY_WORK_DIR to one"),
    ],
)
def test_doctor_finds_bad_settings(settings: Environment, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`doctor` finds settings that make no sense."""
    assert not list(environment_problems())
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    (found,) = environment_problems()
    assert sentence in f"{found['problem']} {found['remedy']}"


def test_doctor_fails_for_bad_settings(environment: Environment) -> None:
    """`doctor` fails for a setting that makes no sense."""
    report = examined(environment | {"RHAPSODY_BACKEND": "abacus"}, "concurrent")
    assert "abacus" in report["environment"][0]["problem"]


def test_doctor_shows_the_log(environment: Environment) -> None:
    """`doctor` shows the log to whoever asks for it."""
    done = rhapsody("doctor", "concurrent", environment=environment | {"RHAPSODY_LOG_LEVEL": "debug"})
    assert "backend_starting" in done.stderr


def _arguments(process: psutil.Process) -> list[str]:
    try:
        arguments: list[str] = process.cmdline()
    except (psutil.Error, OSError):
        return []
    return arguments if "rhapsody.cli._examine" in arguments else []
