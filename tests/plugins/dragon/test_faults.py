"""What goes wrong on a worker, and what the session makes of it."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import CancelResult, ComputeTask, Resources, Session, TaskState
from rhapsody.errors import SerializationError, SubmitError, TaskExecutionError, UnsupportedError, WorkerLostError
from rhapsody_dragon.local import is_alive
from rhapsody_dragon.messages import PART, Joiner, Kind, destroy, new_queue, received, send
from rhapsody_dragon.v1 import DragonExecutionBackendV1
from rhapsody_dragon.v2 import DragonExecutionBackendV2
from rhapsody_dragon.v3 import DragonExecutionBackendV3

from .conftest import run_tasks

pytestmark = [pytest.mark.engine("dragon"), pytest.mark.usefixtures("dragon"), pytest.mark.timeout(180)]

#: More than Batch's store of results holds in one piece, and many messages of a queue.
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


def test_the_queues_of_a_hundred_workers_fit_into_dragons_memory() -> None:
    queues = []
    try:
        for _ in range(201):
            queues.append(new_queue())
        send(queues[-1], 1, 2, Kind.FRAME, b"a" * 2 * PART)
        messages = received(queues[-1], Joiner(), lambda: True)
        assert [len(data) for *_, data in messages] == [2 * PART]
    finally:
        destroy(*queues)


@pytest.mark.parametrize("kind", [DragonExecutionBackendV1, DragonExecutionBackendV2, DragonExecutionBackendV3])
def test_a_function_that_cannot_be_loaded_on_the_worker_fails_alone(kind: type, tmp_path: Path) -> None:
    bad, good = run_tasks(kind(), tmp_path, ComputeTask(function=Unloadable()), ComputeTask(function=abs, args=(-1,)))
    assert isinstance(bad.exception, SerializationError)
    assert "not a number" in str(bad.exception)
    assert good.return_value == 1


def test_a_variable_of_the_scripts_own_string_class_reaches_the_program(tmp_path: Path) -> None:
    program = ComputeTask(executable="sh", arguments=["-c", "echo $A"], environment={"A": Words("green")})
    run_tasks(DragonExecutionBackendV2({"slots": 1}), tmp_path, program)
    assert program.stdout == "green\n"


def test_a_worker_that_dies_fails_its_task_and_is_replaced(tmp_path: Path) -> None:
    tasks = run_tasks(
        DragonExecutionBackendV2({"slots": 1}),
        tmp_path,
        *(ComputeTask(function=abs, args=(-n,)) for n in range(300)),
        ComputeTask(function=os._exit, args=(3,)),
        *(ComputeTask(function=abs, args=(-n,)) for n in range(300)),
    )
    failed = [task for task in tasks if task.state is not TaskState.DONE]
    assert failed == [tasks[300]]
    assert isinstance(failed[0].exception, WorkerLostError)
    assert "exit code 3" in str(failed[0].exception)


def test_a_result_larger_than_a_store_of_dragon_arrives(tmp_path: Path) -> None:
    (task,) = run_tasks(DragonExecutionBackendV2({"slots": 1}), tmp_path, ComputeTask(function=bytes, args=(LARGE,)))
    assert len(task.return_value) == LARGE


def test_the_loop_turns_while_a_thousand_tasks_wait_behind_a_long_one(tmp_path: Path) -> None:
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

    assert asyncio.run(main()) < 0.25


@pytest.mark.parametrize("kind", [DragonExecutionBackendV1, DragonExecutionBackendV2, DragonExecutionBackendV3])
def test_closing_with_tasks_running_ends_them(kind: type, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    tasks = [
        ComputeTask(function=time.sleep, args=(300,)),
        ComputeTask(executable="/bin/sh", arguments=["-c", f"echo $$ > {pid_file}; exec sleep 300"]),
        *(ComputeTask(function=abs, args=(-n,)) for n in range(20)),
    ]

    async def main() -> None:
        session = Session([kind()], work_dir=tmp_path)
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


def test_starts_that_are_interrupted_at_any_moment_leave_the_runtime_whole(tmp_path: Path) -> None:
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


def test_a_program_is_over_when_it_ends_and_what_it_left_in_the_background_ends_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    program = ComputeTask(executable="sh", arguments=["-c", f"sleep 300 & echo $! > {pid_file}; sleep 0.5; echo over"])
    run_tasks(DragonExecutionBackendV1({"slots": 1}), tmp_path, program)
    assert (program.exit_code, program.stdout) == (0, "over\n")
    assert not is_alive(int(pid_file.read_text()))


def test_ranks_are_checked_by_a_session_that_starts_with_its_first_task(tmp_path: Path) -> None:
    async def main() -> ComputeTask:
        task = ComputeTask(executable="true", resources=Resources(ranks=4000))
        session = Session([DragonExecutionBackendV1()], work_dir=tmp_path)
        await session.submit_tasks([task])
        await session.close()
        return task

    task = asyncio.run(main())
    assert isinstance(task.exception, SubmitError)
    assert "slots" in str(task.exception)


def test_a_limit_of_time_ends_the_processes_of_a_program(tmp_path: Path) -> None:
    (task,) = run_tasks(
        DragonExecutionBackendV1({"slots": 1}),
        tmp_path,
        ComputeTask(executable="sleep", arguments=["300"], backend_options={"timeout": 0.5}),
    )
    assert isinstance(task.exception, TimeoutError)
    assert task.exit_code == -15


def test_what_v1_has_started_ahead_is_gone_at_once_when_it_is_canceled(tmp_path: Path) -> None:
    async def main() -> None:
        async with Session([DragonExecutionBackendV1({"slots": 1})], work_dir=tmp_path) as session:
            first = ComputeTask(executable="sleep", arguments=["300"])
            ahead = [
                ComputeTask(executable="touch", arguments=[tmp_path / "ran"]),
                ComputeTask(function=os.mkdir, args=(str(tmp_path / "made"),)),
            ]
            await session.submit_tasks([first])
            async with asyncio.timeout(60):
                while first.state is not TaskState.RUNNING:
                    await asyncio.sleep(0.05)
            await session.submit_tasks(ahead)
            await asyncio.sleep(1.0)  # by then they wait at their gates
            told = await session.cancel_tasks(ahead)
            assert set(told.values()) == {CancelResult.NEVER_STARTED}
            assert {task.state for task in ahead} == {TaskState.CANCELED}
            assert (await session.cancel_tasks([first]))[first.uid] is CancelResult.STOPPED

    asyncio.run(main())
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "made").exists()


def test_ranks_run_side_by_side_and_fail_together(tmp_path: Path) -> None:
    good, bad = run_tasks(
        DragonExecutionBackendV1({"slots": 2}),
        tmp_path,
        ComputeTask(executable="echo", arguments=["rank"], resources=Resources(ranks=2)),
        ComputeTask(executable="false", resources=Resources(ranks=2), backend_options={"pmi": None}),
    )
    assert good.stdout == "rank\nrank\n"
    assert isinstance(bad.exception, TaskExecutionError)
    assert bad.exit_code == 1


def test_more_ranks_than_slots_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="2 slots"):
        run_tasks(
            DragonExecutionBackendV1({"slots": 2}),
            tmp_path,
            ComputeTask(executable="true", resources=Resources(ranks=3)),
        )
