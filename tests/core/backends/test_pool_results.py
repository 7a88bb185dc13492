"""Results of one batch: when they arrive, in which order, and that they outlive their worker."""

from __future__ import annotations

import os
import signal
import time

import pytest
from rhapsody.api import ComputeTask, Session, TaskState, WorkerLostError

from .pool import processes, run

pytestmark = pytest.mark.usefixtures("leaves_nothing")


async def submit_in_large_batches(session: Session, calls: list[ComputeTask]) -> None:
    warm = [ComputeTask(function=_value, args=(0, 0.0, 0)) for _ in range(400)]
    await run(session, *warm)  # so that the function is known to be short
    await session.submit_tasks(calls)
    assert len(calls[0]._batch) > 40


def _value(i: int, seconds: float, size: int) -> tuple[int, bytes]:
    time.sleep(seconds)
    if i < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return i, bytes(size)


async def test_result_precedes_a_long_call() -> None:
    """A result arrives while a long call follows it in its batch."""
    async with processes(1, batching={"target": 100.0}) as session:
        calls = [ComputeTask(function=_value, args=(i, 0.0, 0)) for i in range(100)]
        calls.append(ComputeTask(function=_value, args=(100, 5.0, 0)))
        await submit_in_large_batches(session, calls)
        await session.wait_tasks(calls[:100], timeout=60)
        assert calls[0]._batch is None
        assert not calls[100].is_final
        await session.cancel_tasks([calls[100]])
        assert [task.return_value[0] for task in calls[:100]] == list(range(100))


async def test_results_beyond_one_page() -> None:
    """A batch with more results than a page holds keeps each, in order."""
    async with processes(1, batching={"target": 100.0}) as session:
        sizes = [i * 613 % 70_000 if i % 3 else 17 for i in range(300)]
        calls = [ComputeTask(function=_value, args=(i, 0.0, size)) for i, size in enumerate(sizes)]
        await submit_in_large_batches(session, calls)
        await session.wait_tasks(calls, timeout=60)
        assert [task.return_value for task in calls] == [(i, bytes(size)) for i, size in enumerate(sizes)]


async def test_unread_results_outlive_worker() -> None:
    """Results that no notification has announced outlive their worker."""
    async with processes(1, batching={"target": 100.0}) as session:
        calls = [ComputeTask(function=_value, args=(i, 0.0, 0)) for i in (*range(300), -1, *range(300, 310))]
        await submit_in_large_batches(session, calls)
        await session.wait_tasks(calls, timeout=60)
        lost = [task for task in calls if task.state is TaskState.FAILED]
        assert [task.args[0] for task in lost] == [-1]
        assert isinstance(lost[0].exception, WorkerLostError)
        assert [task.return_value[0] for task in calls if task is not lost[0]] == list(range(310))
        assert all(task.attempt == 1 for task in calls)
