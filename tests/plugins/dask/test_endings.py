"""However the user's program ends: nothing of it is left, and a good end says nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.engine("dask"), pytest.mark.timeout(240)]

SCRIPT = """
import asyncio
import os
import signal
import sys
import time
from rhapsody.api import ComputeTask, Session
from rhapsody.backends import DaskExecutionBackend

def square(x):
    return x * x

async def good(workers):
    backend = DaskExecutionBackend(resources={"n_workers": workers, "threads_per_worker": 1})
    async with Session(backends=[backend]) as session:
        tasks = [ComputeTask(function=square, args=(i,)) for i in range(200)]
        tasks.append(ComputeTask(executable="/bin/echo", arguments=["hello"]))
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)
    print(sum(task.return_value for task in tasks[:200]), tasks[200].stdout.strip())

def lingers():  # a child that holds all of the program's descriptors, and lives on
    child = os.fork()
    if child == 0:
        signal.pause()
    return child

async def ends(how):
    async with Session(backends=[DaskExecutionBackend(resources={"n_workers": 2, "threads_per_worker": 1})]) as session:
        tasks = [ComputeTask(function=time.sleep, args=(60,)), ComputeTask(executable="sleep", arguments=["60"])]
        await session.submit_tasks(tasks)
        while not all(task.state == "RUNNING" for task in tasks):
            await asyncio.sleep(0.01)
        if how == "fork":
            print(lingers(), end=" ")
        print("running", flush=True)
        if how == "exception":
            raise RuntimeError("the user's own")
        await session.wait_tasks(tasks)

def cells():  # a notebook: one loop that runs a cell at a time, and lives on
    loop = asyncio.new_event_loop()
    session = Session(backends=[DaskExecutionBackend(resources={"n_workers": 1, "threads_per_worker": 1})])
    tasks = [ComputeTask(function=square, args=(i,)) for i in range(20)]
    loop.run_until_complete(session.submit_tasks(tasks))
    time.sleep(0.5)
    loop.run_until_complete(session.wait_tasks(tasks))
    loop.run_until_complete(session.close())
    loop.run_until_complete(asyncio.sleep(0.1))
    print(sum(task.return_value for task in tasks))
    loop.close()

if __name__ == "__main__":
    if sys.argv[1] == "cells":
        cells()
    else:
        asyncio.run(good(int(sys.argv[1])) if sys.argv[1].isdigit() else ends(sys.argv[1]))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def program(script: Path) -> Iterator[subprocess.Popen[str]]:
    """A program in which a function and an executable run; in a process group of its own, as in a terminal."""
    with subprocess.Popen(
        [sys.executable, str(script), "wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        cwd=script.parent,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        yield process
        process.kill()


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 4  # two workers, a program, and its guard
    return children


def remaining(processes: list[psutil.Process], seconds: float = 20.0) -> list[psutil.Process]:
    deadline = time.monotonic() + seconds
    while True:
        left = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


@pytest.mark.parametrize("workers", [1, 4])
def test_good_end_writes_nothing(script: Path, workers: int) -> None:
    """A script that ends well writes nothing to stderr."""
    ended = subprocess.run(
        [sys.executable, str(script), str(workers)], capture_output=True, text=True, timeout=110, cwd=script.parent
    )
    assert ended.stderr == ""
    assert ended.stdout == f"{sum(i * i for i in range(200))} hello\n"
    assert ended.returncode == 0
    assert [path.name for path in script.parent.iterdir()] == ["script.py"]


def test_loop_outlives_its_session(script: Path) -> None:
    """A loop that outlives its session receives nothing from it."""
    ended = subprocess.run(
        [sys.executable, str(script), "cells"], capture_output=True, text=True, timeout=110, cwd=script.parent
    )
    assert ended.stderr == ""
    assert ended.stdout == f"{sum(i * i for i in range(20))}\n"


def test_exception_ends_workers(script: Path) -> None:
    """An exception ends workers and executables and is all that is written."""
    ended = subprocess.run(
        [sys.executable, str(script), "exception"], capture_output=True, text=True, timeout=110, cwd=script.parent
    )
    assert ended.stderr.rstrip().endswith("RuntimeError: the user's own")
    assert "distributed" not in ended.stderr


def test_ctrl_c_ends_workers(program: subprocess.Popen[str]) -> None:
    """Ctrl-C ends workers and executables and is all that is written."""
    children = family(program)
    os.killpg(program.pid, signal.SIGINT)  # the terminal sends it to every process of the group
    _, said = program.communicate(timeout=110)
    assert remaining(children) == []
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert "distributed" not in said


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_killed_script_leaves_nothing(program: subprocess.Popen[str], signum: signal.Signals) -> None:
    """A script that is killed leaves no worker and no executable."""
    children = family(program)
    program.send_signal(signum)
    assert program.wait(20) == -signum
    assert remaining(children) == []


def test_forked_child_keeps_no_worker(script: Path) -> None:
    """When the program is killed, its workers and executables end, also while a child that it forked lives on.

    multiprocessing's resource tracker stays with the child, which may use what it will remove.
    """
    command = [sys.executable, "-W", "ignore", str(script), "fork"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=script.parent) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline().split()[0]))
        others = [one for one in family(process) if one != child and "resource_tracker" not in " ".join(one.cmdline())]
        process.kill()
        process.wait()
        try:
            assert remaining(others) == []
            assert child.is_running()
        finally:
            child.kill()


def test_missing_main_guard_is_reported(tmp_path: Path) -> None:
    """A script that forgets the main guard gets an error that says so."""
    path = tmp_path / "unguarded.py"
    path.write_text(SCRIPT.partition("if __name__")[0] + "asyncio.run(good(1))\n")
    ended = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=110, cwd=tmp_path)
    assert ended.returncode != 0
    assert "if __name__ == '__main__'" in ended.stderr
