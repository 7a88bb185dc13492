"""Waiting for tasks of a session."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest
from rhapsody.api import ComputeTask, Session, SessionError, TaskExecutionError, TaskState

from tests.core.sessions.squares import tasks_of


async def test_waiting_never_raises_for_failures(caplog: pytest.LogCaptureFixture) -> None:
    """Waiting raises for no failed task, and no exception is reported as unseen."""

    def fail() -> None:
        raise ValueError("on purpose")

    async with Session() as session:
        tasks = [ComputeTask(function=fail), ComputeTask(executable="false"), *tasks_of(2)]
        await session.submit_tasks(tasks)
        assert await session.wait_tasks(tasks) == tasks
        with pytest.raises(ValueError, match="on purpose"):
            await tasks[0]
        with pytest.raises(TaskExecutionError, match="exit code 1"):
            await tasks[1]
    gc.collect()
    assert not caplog.records


async def test_wait_timeout_leaves_tasks_running() -> None:
    """A timeout says how many are left and leaves them running."""
    release = threading.Event()
    async with Session() as session:
        tasks = [ComputeTask(function=release.wait, args=(30,)), *tasks_of(1)]
        await session.submit_tasks(tasks)
        with pytest.raises(TimeoutError, match=r"1 of 2 tasks have not ended within 0\.2"):
            await session.wait_tasks(tasks, timeout=0.2)
        assert tasks[0].state is TaskState.RUNNING
        release.set()
        await session.wait_tasks(tasks)
        assert tasks[0].return_value is True


async def test_waiting_for_foreign_task_raises() -> None:
    """Waiting for another session's task is an error."""
    async with Session() as one, Session() as two:
        task = ComputeTask(function=time.sleep, args=(0.2,))
        await one.submit_tasks([task])
        with pytest.raises(SessionError, match="is not a task of session"):
            await two.wait_tasks([task])
        with pytest.raises(SessionError, match="was not submitted"):
            await two.wait_tasks(tasks_of(1))


async def test_ended_tasks_are_released() -> None:
    """Nothing holds a task that has ended and that the user has dropped."""
    async with Session() as session:
        tasks = tasks_of(10)
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)
        references = [weakref.ref(task) for task in tasks]
        del tasks
        gc.collect()
        assert [reference() for reference in references] == [None] * 10
