"""Functions on threads and processes of the local backend."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from rhapsody.api import ComputeTask, TaskExecutionError, TaskState

from ..local import KINDS, local, run

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.mark.parametrize("kind", KINDS)
async def test_functions_of_every_kind(kind: str) -> None:
    """Functions of every kind return their values."""
    offset = 10

    class Adder:
        def __init__(self, base: int) -> None:
            self.base = base

        def add(self, x: int) -> int:
            return self.base + x

        def __call__(self, x: int) -> int:
            return self.base * x

    async def later(x: int) -> int:
        await asyncio.sleep(0.01)
        return x + offset

    tasks = await run(
        local(kind),
        ComputeTask(function=lambda x: x + offset, args=(1,)),
        ComputeTask(function=later, args=(1,)),
        ComputeTask(function=Adder(5).add, args=(1,)),
        ComputeTask(function=Adder(5), args=(3,)),
        ComputeTask(function=max, args=([3, 9, 2],), kwargs={"key": lambda x: -x}),
        ComputeTask(function=dict, kwargs={"a": 1}),
    )
    assert [task.return_value for task in tasks] == [11, 11, 6, 15, 2, {"a": 1}]


@pytest.mark.parametrize("kind", KINDS)
async def test_own_exception_comes_back(kind: str) -> None:
    """A function's own exception comes back."""

    class OwnError(Exception):
        pass

    def fail() -> None:
        raise OwnError("with a message")

    (task,) = await run(local(kind), ComputeTask(function=fail))
    assert task.state is TaskState.FAILED
    with pytest.raises(OwnError, match="with a message"):
        await task
    if kind == "processes":
        assert "in fail" in task.exception.__notes__[-1]  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), StopIteration(), asyncio.CancelledError()])
async def test_interpreter_exits_fail_the_task(kind: str, raised: BaseException) -> None:
    """What would end the interpreter or the loop only fails the task."""

    def fail() -> None:
        raise raised

    bad, good = await run(local(kind, 1), ComputeTask(function=fail), ComputeTask(function=os.getpid))
    assert good.state is TaskState.DONE
    with pytest.raises(TaskExecutionError, match=type(raised).__name__):
        await bad


async def test_async_functions_share_a_loop() -> None:
    """Async functions share a loop of their worker."""

    async def loop_id() -> tuple[int, int]:
        return threading.get_ident(), id(asyncio.get_running_loop())

    tasks = await run(local("threads", 2), *(ComputeTask(function=loop_id) for _ in range(50)))
    places = {task.return_value for task in tasks}
    assert len(places) <= len({thread for thread, _ in places}) + 2


async def test_processes_run_in_parallel() -> None:
    """Processes run beside the caller and beside each other."""

    def where() -> int:
        time.sleep(0.05)
        return os.getpid()

    tasks = await run(local("processes", 2), *(ComputeTask(function=where) for _ in range(8)))
    pids = {task.return_value for task in tasks}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert {int(str(task.ran_on).rpartition(":")[2]) for task in tasks} == pids


@pytest.mark.parametrize("kind", KINDS)
async def test_ten_thousand_results_in_place(kind: str) -> None:
    """Each of ten thousand results belongs to its own task."""
    tasks = await run(local(kind), *(ComputeTask(function=pow, args=(i, 2)) for i in range(10_000)))
    assert [task.return_value for task in tasks] == [i * i for i in range(10_000)]


def test_script_without_main_guard(tmp_path: Path) -> None:
    """A script without a main guard runs functions in processes."""
    script = tmp_path / "plain.py"
    script.write_text(
        textwrap.dedent("""
            import asyncio
            from rhapsody.api import ComputeTask, Session
            from rhapsody.backends import ConcurrentExecutionBackend

            class Point:
                def __init__(self, x): self.x = x

            def double(point): return Point(2 * point.x)

            async def main():
                async with Session(backends=[ConcurrentExecutionBackend(executor="processes")]) as session:
                    task = ComputeTask(function=double, args=(Point(4),))
                    await session.submit_tasks([task])
                    result = (await task).return_value
                    print(result.x, isinstance(result, Point))

            asyncio.run(main())
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("8 True\n", "")
