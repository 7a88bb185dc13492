"""Tasks that cannot be stopped, and are given up."""

from __future__ import annotations

import asyncio
import threading

import pytest
from rhapsody.api import CancelResult, ComputeTask, Session, TaskCanceledError, TaskState
from rhapsody.backends import ConcurrentExecutionBackend


async def test_abandoned_function_is_canceled(leaves_nothing: None) -> None:
    """With abandon=True what cannot be stopped ends as CANCELED, and its late end is dropped."""
    gate, began = threading.Event(), threading.Event()

    def stuck() -> str:
        began.set()
        gate.wait(60)
        return "late"

    async with Session(backends=ConcurrentExecutionBackend(max_workers=1)) as session:
        task, waiting, ended = ComputeTask(function=stuck), ComputeTask(function=int), ComputeTask(function=int)
        await session.submit_tasks([ended])
        await ended
        await session.submit_tasks([task, waiting])
        await asyncio.to_thread(began.wait, 60)
        assert await session.cancel_tasks([task]) == {task.uid: CancelResult.CANNOT_STOP}
        assert not task.is_final
        assert await session.cancel_tasks([task, waiting, ended], abandon=True) == {
            task.uid: CancelResult.ABANDONED,
            waiting.uid: CancelResult.NEVER_STARTED,
            ended.uid: CancelResult.TOO_LATE,
        }
        with pytest.raises(TaskCanceledError, match=task.uid):
            await task
        gate.set()
        later = ComputeTask(function=int)
        await session.submit_tasks([later])
        await later
    assert (task.state, task.return_value) == (TaskState.CANCELED, None)
