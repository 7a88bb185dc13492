"""`close` finishes whatever interrupts the wait for it, and the pool runs on other loops than asyncio's."""

from __future__ import annotations

import asyncio
import importlib
import time
from typing import Any

import pytest
from rhapsody.api import CancelResult, ComputeTask, Session, TaskState
from rhapsody.backends import ConcurrentExecutionBackend

from ..backends.pool import processes, running

anyio: Any = importlib.import_module("anyio")
uvloop: Any = importlib.import_module("uvloop")


def sleeper() -> ComputeTask:
    return ComputeTask(function=time.sleep, args=(60,))


def is_running(task: ComputeTask) -> bool:
    return task.state is TaskState.RUNNING


async def test_move_on_after_leaves_a_closed_session() -> None:
    """A scope of anyio cancels its task again and again; the session is closed and its tasks are final all the same."""
    session, task = processes(), sleeper()
    with anyio.move_on_after(60) as scope:
        async with session:
            await session.submit_tasks([task])
            while not is_running(task):
                await anyio.sleep(0.01)
            scope.deadline = anyio.current_time()
            await task
    assert scope.cancelled_caught
    assert session.is_closed
    assert task.state is TaskState.CANCELED


async def test_a_failed_neighbour_leaves_a_closed_session() -> None:
    """Likewise where another task of an anyio task group fails."""
    session, task = processes(), sleeper()

    async def compute() -> None:
        async with session:
            await session.submit_tasks([task])
            await task

    async def fail() -> None:
        while task.state is not TaskState.RUNNING:
            await asyncio.sleep(0.01)
        raise ValueError("no")

    async def both() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(compute)
            group.start_soon(fail)

    with pytest.raises(ExceptionGroup):
        await both()
    assert session.is_closed
    assert task.state is TaskState.CANCELED


async def test_a_start_that_is_given_up_is_undone() -> None:
    """A scope that ends while the workers start leaves none of them."""
    backend = ConcurrentExecutionBackend(executor="processes", max_workers=2)
    session = Session(backends=[backend])
    with anyio.move_on_after(0):
        await session.submit_tasks([sleeper()])
    await session.close()
    assert not backend.is_attached


def test_the_pool_runs_on_uvloop() -> None:
    """Results, large ones too, and the end of a function that runs."""

    async def main() -> None:
        async with processes() as session:
            tasks = [ComputeTask(function=bytes, args=(size,)) for size in (10, 3_000_000) * 50]
            await session.submit_tasks(tasks)
            await session.wait_tasks(timeout=60)
            assert all(len(task.result().return_value) == task.args[0] for task in tasks)
            long = sleeper()
            await session.submit_tasks([long])
            await running(long)
            assert await session.cancel_tasks([long]) == {long.uid: CancelResult.STOPPED}

    uvloop.run(main())
