"""Batches that are canceled at every moment of their lives."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import psutil
import pytest
from rhapsody.api import CancelResult, ComputeTask, Session, TaskState
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.backends.local.pool.member import Member

from .pool import processes, run, running

pytestmark = pytest.mark.usefixtures("leaves_nothing")


async def test_cancel_spares_neighbours() -> None:
    """Cancel stops the task that it names and never its neighbour."""

    def briefly(i: int) -> int:
        time.sleep(0.001)
        return i

    async with processes(2, batching={"target": 0.05}) as session:
        outcomes: dict[CancelResult, int] = {}
        for _ in range(12):
            tasks = [ComputeTask(function=briefly, args=(i,)) for i in range(150)]
            await session.submit_tasks(tasks)
            doomed = tasks[::7]
            while not any(task.is_final for task in tasks):
                await asyncio.sleep(0.001)
            results = await session.cancel_tasks(doomed)
            await session.wait_tasks(tasks, timeout=60)
            for i, task in enumerate(tasks):
                if task in doomed:
                    outcomes[results[task.uid]] = outcomes.get(results[task.uid], 0) + 1
                    stopped = results[task.uid] in (CancelResult.NEVER_STARTED, CancelResult.STOPPED)
                    assert task.state is (TaskState.CANCELED if stopped else TaskState.DONE), (results[task.uid], task)
                else:
                    assert (task.state, task.return_value) == (TaskState.DONE, i)
        assert CancelResult.CANNOT_STOP not in outcomes
        assert outcomes[CancelResult.NEVER_STARTED]


@pytest.mark.parametrize("started", [False, True])
async def test_batch_canceled_together(started: bool, tmp_path: Path) -> None:
    """Tasks of one batch that are canceled together stay canceled."""

    def mark(i: int, seconds: float) -> None:
        (tmp_path / str(i)).touch()
        time.sleep(seconds)

    async with processes(1, batching={"target": 1000}) as session:
        await run(session, *(ComputeTask(function=mark, args=(-1, 0)) for _ in range(64)))  # it is known to be short
        tasks = [ComputeTask(function=mark, args=(i, 600)) for i in range(20)]
        await session.submit_tasks(tasks)
        if started:
            await running(tasks[0])
        results = await session.cancel_tasks([*tasks, *tasks])  # each named twice
        assert {task.state for task in tasks} == {TaskState.CANCELED}
        assert set(results.values()) <= {CancelResult.NEVER_STARTED, CancelResult.STOPPED}
        ran = {path.name for path in tmp_path.iterdir()} - {"-1"}
        assert ran <= {"0"}
        after = await run(session, ComputeTask(function=int))
        assert after[0].state is TaskState.DONE


async def test_double_cancel_counts_once() -> None:
    """A task canceled twice at once is counted once, and the others run."""
    release = threading.Event()
    async with Session(backends=[ConcurrentExecutionBackend(max_workers=1)]) as session:
        blocker = ComputeTask(function=release.wait, args=(60,))
        waiting = [ComputeTask(function=pow, args=(i, 1)) for i in range(10_000)]
        await session.submit_tasks([blocker, *waiting])
        last = waiting[-1]  # beyond what the threads hold: it is in the backlog
        await asyncio.gather(session.cancel_tasks([last, last]), session.cancel_tasks([last]))
        release.set()
        await session.wait_tasks(waiting, timeout=60)
        assert sum(task.state is TaskState.DONE for task in waiting) == 9_999


async def test_executable_stops_once_running() -> None:
    """An executable can be stopped from the moment that it is running."""
    async with Session(backends=[ConcurrentExecutionBackend(max_workers=2)]) as session:
        for _ in range(30):
            task = ComputeTask(executable="sleep", arguments=[600])
            await session.submit_tasks([task])
            while task.state is TaskState.QUEUED:
                await asyncio.sleep(0)
            assert await session.cancel_tasks([task]) == {task.uid: CancelResult.STOPPED}
            assert task.state is TaskState.CANCELED


async def test_canceled_cancel_is_harmless(tmp_path: Path) -> None:
    """A cancel that is itself canceled leaves the session usable."""
    async with Session(backends=[ConcurrentExecutionBackend(max_workers=1)]) as session:
        deaf = tmp_path / "deaf"
        task = ComputeTask(executable=f"trap '' TERM; touch {deaf}; sleep 600", shell=True)
        await session.submit_tasks([task])
        while not deaf.exists():
            await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.cancel_tasks([task]), 0.05)
        await session.wait_tasks([task], timeout=60)
        assert task.state is TaskState.CANCELED
        await run(session, ComputeTask(function=int))


async def test_canceled_cancel_resumes_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancel that is itself canceled does not leave a worker stopped."""
    monkeypatch.setattr(Member, "_is_still", lambda _: False)  # as where a machine is slow to halt it
    async with processes(1) as session:
        task = ComputeTask(function=time.sleep, args=(1,))
        await session.submit_tasks([task])
        await running(task)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.cancel_tasks([task]), 0.1)
        await session.wait_tasks([task], timeout=30)
        assert task.state is TaskState.DONE


async def test_worker_is_stopped_when_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker is stopped when it is killed, though another cancel of its task was abandoned."""
    is_still, kill = Member._is_still, Member.kill
    found: list[str] = []

    def check_and_kill(member: Member) -> None:
        found.append(psutil.Process(member.process.pid).status())
        kill(member)

    monkeypatch.setattr(Member, "_is_still", lambda _: False)
    monkeypatch.setattr(Member, "kill", check_and_kill)
    async with processes(1) as session:
        task = ComputeTask(function=time.sleep, args=(600,))
        await session.submit_tasks([task])
        await running(task)
        given_up = asyncio.create_task(session.cancel_tasks([task]))
        other = asyncio.create_task(session.cancel_tasks([task]))
        await asyncio.sleep(0.05)
        given_up.cancel()
        await asyncio.wait([given_up])
        monkeypatch.setattr(Member, "_is_still", is_still)
        assert await other == {task.uid: CancelResult.STOPPED}
        assert found[0] == psutil.STATUS_STOPPED
