"""What goes wrong on a worker, and what the session makes of it."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rhapsody import __version__
from rhapsody.api import ComputeTask, Resources, Session, TaskState
from rhapsody.errors import SerializationError, SubmitError, TaskExecutionError, WorkerLostError
from rhapsody_dragon.exit_watch import is_alive, wait_for_end
from rhapsody_dragon.messages import PART, Joiner, Kind, destroy, new_queue, received, send
from rhapsody_dragon.v1 import DragonExecutionBackendV1
from rhapsody_dragon.v2 import DragonExecutionBackendV2

from .conftest import Shared, run_tasks

pytestmark = [pytest.mark.engine("dragon"), pytest.mark.usefixtures("dragon"), pytest.mark.timeout(180)]

#: Many messages of a queue.
LARGE = 1100 * 2**20


class Unloadable:
    """Can be pickled, and not be loaded again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (int, ("not a number",))

    def __call__(self) -> None: ...


class Words(str):
    """A string whose class is not there on a worker, as that of a script's enumeration."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return (int, ("not a number",))


def test_queues_of_many_workers_fit() -> None:
    """They take little of Dragon's memory pool of 4 GiB, so that a large message still passes; Dragon's own fill it."""
    queues = []
    try:
        for _ in range(65):
            queues.append(new_queue())
        send(queues[-1], 1, 2, Kind.FRAME, b"a" * 2 * PART)
        send(queues[-1], 1, 2, Kind.STOP)
        messages = received(queues[-1], Joiner())
        assert [len(data) for *_, data in messages] == [2 * PART]
    finally:
        destroy(*queues)


@pytest.mark.parametrize("kind", [DragonExecutionBackendV1, DragonExecutionBackendV2])
def test_an_unloadable_function_fails_alone(kind: type, shared: Shared) -> None:
    """A function that cannot be loaded on the worker fails with the reason, and its neighbour runs."""
    bad, good = shared.run(kind, ComputeTask(function=Unloadable()), ComputeTask(function=abs, args=(-1,)))
    assert isinstance(bad.exception, SerializationError)
    assert "not a number" in str(bad.exception)
    assert good.return_value == 1


def test_a_string_subclass_is_a_variable(shared: Shared) -> None:
    """A variable of a string class of the script's own reaches an executable as a plain string."""
    program = ComputeTask(executable="sh", arguments=["-c", "echo $A"], environment={"A": Words("green")})
    shared.run(DragonExecutionBackendV2, program)
    assert program.stdout == "green\n"


def test_a_dead_worker_is_replaced(shared: Shared) -> None:
    """A worker that dies fails the task that it ran, and its successor runs the others."""
    tasks = shared.run(
        DragonExecutionBackendV2,
        *(ComputeTask(function=abs, args=(-n,)) for n in range(300)),
        ComputeTask(function=os._exit, args=(3,)),
        *(ComputeTask(function=abs, args=(-n,)) for n in range(300)),
    )
    failed = [task for task in tasks if task.state is not TaskState.DONE]
    assert failed == [tasks[300]]
    assert isinstance(failed[0].exception, WorkerLostError)
    assert "exit code 3" in str(failed[0].exception)


def test_a_child_program_is_not_this_one(shared: Shared) -> None:
    """A program that inherits our environment starts a runtime of its own, and takes no answers."""
    script = """
from rhapsody_dragon import runtime
held = runtime.acquire(lambda what: None)
print(held.kind)
runtime.release(held)
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    (task,) = shared.run(DragonExecutionBackendV2, ComputeTask(function=abs, args=(-7,)))
    assert task.return_value == 7
    assert child.communicate(timeout=150)[0].split() == ["own"]


def test_another_core_is_warned_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Workers with another rhapsody-core are warned of once, with both versions."""
    monkeypatch.setattr("rhapsody.seam.context.__version__", "9.8.7")
    with pytest.warns(RuntimeWarning, match=f"rhapsody-core 9.8.7 here and {re.escape(__version__)}") as caught:
        run_tasks(DragonExecutionBackendV2(), tmp_path, ComputeTask(function=abs, args=(-1,)))
    assert len(caught) == 1


@pytest.mark.nightly
def test_a_huge_result_arrives(shared: Shared) -> None:
    """A result larger than any store of Dragon's travels in parts."""
    (task,) = shared.run(DragonExecutionBackendV2, ComputeTask(function=bytes, args=(LARGE,)))
    assert len(task.return_value) == LARGE


def test_waiting_tasks_leave_the_loop_free(tmp_path: Path) -> None:
    """The loop turns while a thousand tasks wait behind a long one."""

    async def main() -> float:
        async with Session([DragonExecutionBackendV2({"slots": 1})], work_dir=tmp_path) as session:
            await session.submit_tasks([ComputeTask(function=time.sleep, args=(1.5,))])
            gap, last = 0.0, time.thread_time()
            end = time.monotonic() + 1.0
            tasks = [ComputeTask(function=abs, args=(-n,)) for n in range(1000)]
            submitting = [asyncio.ensure_future(session.submit_tasks([task])) for task in tasks]
            while time.monotonic() < end:
                await asyncio.sleep(0.01)
                # The processor time of this thread: what the loop itself did between two ticks. A busy machine delays
                # every tick, and says nothing of us.
                gap, last = max(gap, time.thread_time() - last), time.thread_time()
            await asyncio.gather(*submitting)
            await session.wait_tasks(tasks)
            return gap

    gc.freeze()  # what other tests left is not collected on the loop's time
    try:
        assert asyncio.run(main()) < 0.25
    finally:
        gc.unfreeze()


def test_close_ends_running_tasks(tmp_path: Path) -> None:
    """close(wait=False) ends a job and what a worker runs, and nothing of them runs on."""
    pid_file = tmp_path / "pid"
    tasks = [
        ComputeTask(function=time.sleep, args=(300,)),
        ComputeTask(executable="/bin/sh", arguments=["-c", f"echo $$ > {pid_file}; exec sleep 300"]),
        *(ComputeTask(function=abs, args=(-n,)) for n in range(20)),
    ]

    async def main() -> None:
        session = Session([DragonExecutionBackendV1()], work_dir=tmp_path)
        await session.start()
        await session.submit_tasks(tasks)
        until = time.monotonic() + 60
        while not pid_file.exists() or not pid_file.read_text():
            assert time.monotonic() < until
            await asyncio.sleep(0.05)
        await session.close(wait=False)

    asyncio.run(main())
    assert {task.state for task in tasks} <= {TaskState.CANCELED, TaskState.FAILED, TaskState.DONE}
    assert tasks[0].state is not TaskState.DONE
    assert not is_alive(int(pid_file.read_text()))


@pytest.mark.nightly
def test_interrupted_starts_do_no_harm(tmp_path: Path) -> None:
    """A start that is interrupted at any moment leaves the runtime whole."""

    async def interrupted(seconds: float) -> None:
        async def use() -> None:
            async with Session([DragonExecutionBackendV2({"slots": 2})], work_dir=tmp_path):
                await asyncio.sleep(30)

        using = asyncio.create_task(use())
        await asyncio.sleep(seconds)
        using.cancel()
        await asyncio.wait([using])
        assert using.cancelled()

    for tenth in range(12):
        asyncio.run(interrupted(tenth / 10))
    [task] = run_tasks(DragonExecutionBackendV2({"slots": 2}), tmp_path, ComputeTask(function=abs, args=(-7,)))
    assert task.return_value == 7


def test_background_processes_end_too(shared: Shared, tmp_path: Path) -> None:
    """An executable is over when it ends, and what it left in the background ends with it."""
    pid_file = tmp_path / "pid"
    arguments = ["-c", f"sleep 300 & echo $! > {pid_file}; sleep 0.5; echo over"]
    for options in ({}, {"timeout": 60}):  # on a worker, and as a job
        program = ComputeTask(executable="sh", arguments=arguments, backend_options=options)
        shared.run(DragonExecutionBackendV1, program)
        assert (program.exit_code, program.stdout) == (0, "over\n")
        assert wait_for_end(int(pid_file.read_text()), 20)


def test_too_many_ranks_in_a_first_task(tmp_path: Path) -> None:
    """Ranks are checked once the nodes are known, where the first task starts the session."""

    async def main() -> ComputeTask:
        task = ComputeTask(executable="true", resources=Resources(ranks=4000))
        session = Session([DragonExecutionBackendV1()], work_dir=tmp_path)
        await session.submit_tasks([task])
        await session.close()
        return task

    task = asyncio.run(main())
    assert isinstance(task.exception, SubmitError)
    assert "slots" in str(task.exception)


def test_ranks_run_and_fail_together(shared: Shared) -> None:
    """Each rank writes to the output of the job, whose exit code is that of a rank that failed."""
    good, bad = shared.run(
        DragonExecutionBackendV1,
        ComputeTask(executable="echo", arguments=["rank"], resources=Resources(ranks=2)),
        ComputeTask(executable="false", resources=Resources(ranks=2), backend_options={"pmi": None}),
    )
    assert good.stdout == "rank\nrank\n"
    assert isinstance(bad.exception, TaskExecutionError)
    assert bad.exit_code == 1
