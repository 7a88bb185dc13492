"""What runs on Dragon's Batch: jobs and templates, and in stream mode everything."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from rhapsody.api import CancelResult, ComputeTask, Session, TaskState
from rhapsody.errors import TaskExecutionError, WorkerLostError
from rhapsody.testing import die
from rhapsody_dragon.local import is_alive
from rhapsody_dragon.v3 import DragonExecutionBackendV3

from .conftest import run_tasks

# Each test has a runtime of its own, and so one Batch.
pytestmark = [pytest.mark.engine("dragon"), pytest.mark.timeout(300)]


def test_batch_runs_a_template_and_a_job_and_says_how_they_ended(tmp_path: Path) -> None:
    one, job = run_tasks(
        DragonExecutionBackendV3(num_workers=1),
        tmp_path,
        ComputeTask(
            executable="/bin/sh",
            arguments=["-c", "pwd; echo $A >&2; exit 3"],
            backend_options={"process_template": {"cwd": "/", "env": {"A": "green"}}},
        ),
        ComputeTask(executable="cat", stdin="in", backend_options={"process_templates": [(1, {})], "pmi": None}),
    )
    assert (one.exit_code, one.stdout, one.stderr) == (3, "/\n", "green\n")
    assert isinstance(one.exception, TaskExecutionError)
    assert (job.exit_code, job.stdout) == (0, "in")
    assert not list(Path.cwd().glob("ddict_orc_*"))


def test_stream_mode_runs_each_task_as_a_unit_of_batch(tmp_path: Path) -> None:
    tasks = run_tasks(
        DragonExecutionBackendV3(disable_batch_submission=True),
        tmp_path,
        *(ComputeTask(function=abs, args=(-n,)) for n in range(3)),
        ComputeTask(executable="echo", arguments=["hi"]),
    )
    assert [task.return_value for task in tasks[:3]] == [0, 1, 2]
    assert tasks[3].stdout == "hi\n"


def test_programs_that_wait_in_batch_are_queued_and_are_canceled_with_the_one_that_runs(tmp_path: Path) -> None:
    tasks = [
        ComputeTask(
            executable="/bin/sh",
            arguments=["-c", f"echo $$ > {tmp_path}/{number}; exec sleep 300"],
            backend_options={"process_template": {}},
        )
        for number in range(4)
    ]

    async def main() -> tuple[list[TaskState], list[CancelResult]]:
        backend = DragonExecutionBackendV3(num_workers=1)
        async with Session([backend], work_dir=tmp_path) as session:
            await session.submit_tasks(tasks)
            async with asyncio.timeout(90):
                while not list(tmp_path.glob("[0-3]")):
                    await asyncio.sleep(0.1)
            await asyncio.sleep(2.0)  # for reports that should not come, and one that should
            states = [task.state for task in tasks]
            told = await session.cancel_tasks(tasks)
        return states, [told[task.uid] for task in tasks]

    states, told = asyncio.run(main())
    began = [(tmp_path / str(number)).exists() for number in range(4)]
    assert [state is TaskState.RUNNING for state in states] == began
    assert {task.state for task in tasks} == {TaskState.CANCELED}
    assert set(told) <= {CancelResult.STOPPED, CancelResult.NEVER_STARTED}
    for file in tmp_path.glob("[0-3]"):
        assert not is_alive(int(file.read_text()))


def test_sessions_at_the_same_time_share_a_batch_and_what_one_leaves_running_ends_without_harm(tmp_path: Path) -> None:
    def sleep(path: str) -> None:
        Path(path).write_text(str(os.getpid()))
        time.sleep(300)  # in C, where Batch cannot interrupt it

    async def main() -> tuple[ComputeTask, ComputeTask]:
        backends = [DragonExecutionBackendV3(disable_batch_submission=True) for _ in range(2)]
        leaving, staying = (Session([backend], work_dir=tmp_path) for backend in backends)
        await asyncio.gather(leaving.start(), staying.start())
        assert backends[0]._batch._host is backends[1]._batch._host
        asleep = ComputeTask(function=sleep, args=(str(tmp_path / "pid"),))
        after = ComputeTask(function=abs, args=(-2,))
        await leaving.submit_tasks([asleep])
        async with asyncio.timeout(60):
            while not (tmp_path / "pid").exists():
                await asyncio.sleep(0.1)
        await staying.submit_tasks([after])
        await leaving.close(wait=False)
        assert not is_alive(int((tmp_path / "pid").read_text()))
        await staying.wait_tasks([after])
        await staying.close()
        return asleep, after

    asleep, after = asyncio.run(main())
    assert asleep.state is not TaskState.DONE
    assert after.return_value == 2


def test_after_the_death_of_a_worker_of_batch_its_task_has_failed_and_all_others_run_once(tmp_path: Path) -> None:
    def sign(path: str) -> None:
        with Path(path).open("a") as file:
            file.write("x")

    signing = [ComputeTask(function=sign, args=(str(tmp_path / str(number)),)) for number in range(12)]
    victim = ComputeTask(function=die)
    program = ComputeTask(executable="echo", arguments=["hi"], backend_options={"process_template": {}})
    backend = DragonExecutionBackendV3(disable_batch_submission=True)
    run_tasks(backend, tmp_path, *signing[:6], victim, *signing[6:], program)
    assert isinstance(victim.exception, WorkerLostError)
    assert {task.state for task in signing} == {TaskState.DONE}
    assert [(tmp_path / str(number)).read_text() for number in range(12)] == ["x"] * 12
    assert program.stdout == "hi\n"


def test_a_job_whose_batch_worker_died_ends_with_its_processes_and_others_go_on(tmp_path: Path) -> None:
    single, job = {"process_template": {}}, {"process_templates": [(1, {})], "pmi": None}
    ending, asleep = (
        ComputeTask(executable="sleep", arguments=[seconds], backend_options=options)
        for seconds, options in ((5, job), (300, single))
    )

    async def lose_worker_while(running: ComputeTask, session: Session, backend: DragonExecutionBackendV3) -> None:
        await session.submit_tasks([running])
        async with asyncio.timeout(90):
            while running.state is not TaskState.RUNNING:
                await asyncio.sleep(0.1)
        os.kill(backend._batch._host._places[0].pid, signal.SIGKILL)

    async def main() -> tuple[CancelResult, ComputeTask]:
        backend = DragonExecutionBackendV3(num_workers=1)
        after = ComputeTask(executable="echo", arguments=["hi"], backend_options=single)
        async with Session([backend], work_dir=tmp_path) as session:
            await lose_worker_while(ending, session, backend)
            await session.wait_tasks([ending])
            await lose_worker_while(asleep, session, backend)
            await asyncio.sleep(2.0)  # in which the death is noticed
            told = await session.cancel_tasks([asleep])
            await session.submit_tasks([after])
            await session.wait_tasks([after])
        return told[asleep.uid], after

    told, after = asyncio.run(main())
    assert isinstance(ending.exception, WorkerLostError)
    assert (told, asleep.state) == (CancelResult.STOPPED, TaskState.CANCELED)
    assert after.stdout == "hi\n"


def test_a_batch_that_lost_a_worker_serves_neither_those_that_share_it_nor_who_comes_later(tmp_path: Path) -> None:
    def new() -> DragonExecutionBackendV3:
        return DragonExecutionBackendV3(disable_batch_submission=True)

    def square(number: int) -> int:
        return number**2

    async def main() -> list[ComputeTask]:
        losing, idle = new(), new()
        async with Session([losing], work_dir=tmp_path) as first, Session([idle], work_dir=tmp_path) as second:
            spoiled = losing._batch._host
            assert idle._batch._host is spoiled
            victim = ComputeTask(function=die)
            await first.submit_tasks([victim])
            await first.wait_tasks([victim], timeout=60)
            tasks = [ComputeTask(function=square, args=(number,)) for number in range(3)]
            async with Session([new()], work_dir=tmp_path) as third:
                for session, task in zip((first, second, third), tasks, strict=True):
                    await session.submit_tasks([task])
                    await session.wait_tasks([task], timeout=100)
                assert losing._batch._host is idle._batch._host is not spoiled
        return tasks

    tasks = asyncio.run(main())
    assert [task.return_value for task in tasks] == [0, 1, 4]
