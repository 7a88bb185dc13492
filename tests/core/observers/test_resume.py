"""Resuming a session: what was done is not run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rhapsody.api import ComputeTask, JournalError, Session, TaskInterruptedError
from rhapsody.cli import group

from .journals import rows

pytestmark = pytest.mark.usefixtures("leaves_nothing")
RUNS: list[Any] = []


def _counted(value: Any) -> Any:
    RUNS.append(value)
    if value == "bad":
        raise ValueError(value)
    return [value]


@pytest.fixture(autouse=True)
def _no_runs() -> None:
    RUNS.clear()


async def _run(session: Session, *values: Any, **fields: Any) -> list[ComputeTask]:
    async with session:
        tasks = [ComputeTask(function=_counted, args=(value,), **fields) for value in values]
        await session.submit_tasks(tasks)
        return await session.wait_tasks(tasks)


async def test_done_tasks_are_recalled(work_dir: Path) -> None:
    """A resumed session has the results of what was done, and runs only the rest; again and again."""
    await _run(Session(uid="s", journal=True), 1, 2, "bad")
    for round_ in range(2):
        RUNS.clear()
        tasks = await _run(Session.resume(work_dir / "s"), 1, 2, "bad", 3)
        assert sorted(map(str, RUNS)) == (["3", "bad"] if round_ == 0 else ["bad"])
        assert [task.return_value for task in tasks] == [[1], [2], None, [3]]
        assert [str(task.state) for task in tasks] == ["DONE", "DONE", "FAILED", "DONE"]
    assert len(rows(work_dir / "s", "SELECT id FROM runs")) == 3


async def test_alike_tasks_have_a_result_each(work_dir: Path) -> None:
    """Of tasks that are alike, as many are recalled as were done."""
    await _run(Session(uid="s", journal=True), 1, 1)
    await _run(Session.resume(work_dir / "s"), 1, 1, 1)
    assert RUNS == [1, 1, 1]


async def test_dependents_of_recalled_tasks(work_dir: Path) -> None:
    """A task that waits for a recalled one runs with its result; a recalled one waits for nothing."""
    for _ in range(2):
        first = ComputeTask(function=_counted, args=(1,))
        second = ComputeTask(function=_counted, args=(first,))
        third = ComputeTask(function=len, args=(second,), after=[first])
        session = Session(uid="s", journal=True) if not RUNS else Session.resume(work_dir / "s")
        async with session:
            await session.submit_tasks([third, second, first])
            await session.wait_tasks()
        assert (first.return_value, second.return_value, third.return_value) == ([1], [[1]], 1)
    assert RUNS == [1, [1]]


async def test_executables_are_recalled(work_dir: Path) -> None:
    """An executable that was done has its streams and exit code."""
    for _ in range(2):
        session = Session(uid="s", journal=True) if not (work_dir / "s").exists() else Session.resume("s")
        async with session:
            task = ComputeTask(executable="echo x >> runs; echo out", shell=True)
            await session.submit_tasks([task])
            await task
        assert (task.stdout, task.exit_code) == ("out\n", 0)
    assert (work_dir / "runs").read_text() == "x\n"


async def test_resume_needs_a_journal(work_dir: Path) -> None:
    """A session without a journal cannot be resumed."""
    async with Session.resume(work_dir / "none") as session:
        with pytest.raises(JournalError, match="there is no journal"):
            await session.submit_tasks([ComputeTask(function=_counted, args=(1,))])


_SCRIPT = """
import asyncio, os, signal, sys, time
from rhapsody.api import *

def work(n):
    with open("runs", "a") as file:
        print(n, file=file)
    if n == 99 and len(sys.argv) > 1:
        time.sleep(60)
    return n

async def main():
    async with Session(uid=os.environ.get("UID_OF_SESSION")) as session:
        tasks = [ComputeTask(function=work, args=(n,)) for n in range(5)]
        await session.submit_tasks(tasks)
        await session.wait_tasks()
        long = ComputeTask(function=work, args=(99,), idempotent="IDEMPOTENT" in os.environ)
        await session.submit_tasks([long])
        if len(sys.argv) > 1:
            while long.state != "RUNNING":
                await asyncio.sleep(0.01)
            await asyncio.sleep(1.5)
            os.kill(os.getpid(), signal.SIGKILL)
        await session.wait_tasks()
        print(long.state, type(long.exception).__name__, [task.return_value for task in tasks])

asyncio.run(main())
"""


def _rhapsody(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rhapsody", *arguments], env={**os.environ, **environment}, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("again", ["reported", "--rerun", "idempotent"])
def test_killed_script_goes_on(work_dir: Path, again: str) -> None:
    """`rhapsody run --resume`: what was done does not run again; what was interrupted only if that is allowed."""
    (work_dir / "script.py").write_text(_SCRIPT)
    killed = _rhapsody("run", "script.py", "kill", UID_OF_SESSION="s")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    options = ["--rerun"] if again == "--rerun" else []
    environment = {"IDEMPOTENT": "1"} if again == "idempotent" else {}
    resumed = _rhapsody("run", *options, "--resume", "s", "script.py", **environment)
    error = "TaskInterruptedError" if again == "reported" else "NoneType"
    state = "FAILED" if again == "reported" else "DONE"
    assert resumed.stdout == f"{state} {error} [0, 1, 2, 3, 4]\n", resumed.stderr
    ran = (work_dir / "runs").read_text().split()
    assert sorted(ran) == ["0", "1", "2", "3", "4", "99"] + ["99"] * (again != "reported")


def test_run_refuses_what_it_cannot_resume(work_dir: Path) -> None:
    """`rhapsody run --resume` of a folder without a journal fails before the script starts."""
    (work_dir / "script.py").write_text("raise SystemExit('it ran')")
    done = CliRunner().invoke(group, ["run", "--resume", "none", "script.py"])
    assert done.exit_code == 1
    assert "there is no journal" in done.stderr
    assert issubclass(TaskInterruptedError, Exception)
