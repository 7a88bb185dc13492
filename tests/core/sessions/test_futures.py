"""What `submit_tasks` returns: a future for each task, made when somebody asks for it."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
from rhapsody.api import ComputeTask, Session, TaskCanceledError


@pytest.fixture
def gate() -> threading.Event:
    return threading.Event()


async def test_future_is_always_the_same(gate: threading.Event) -> None:
    """A task's future is the same however often and however late it is asked for."""
    async with Session() as session:
        tasks = [ComputeTask(function=gate.wait), ComputeTask(function=gate.wait)]
        futures = await session.submit_tasks(tasks)
        early = futures[0]
        assert not early.done()
        gate.set()
        await session.wait_tasks(tasks)
        assert [future.result() for future in futures] == tasks
        assert early is futures[0]
        assert futures[1] is futures[-1]


async def test_late_future_has_the_outcome() -> None:
    """A future asked for after the end has the outcome."""
    async with Session() as session:
        tasks = [ComputeTask(function=int, args=(text,)) for text in ("7", "x")]
        futures = await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)
        assert futures[0].result() is tasks[0]
        with pytest.raises(ValueError, match="invalid literal"):
            await futures[1]


async def test_futures_read_like_a_list(gate: threading.Event) -> None:
    """The futures of a submit read like a list."""
    async with Session() as session:
        tasks = [ComputeTask(function=int), *(ComputeTask(function=gate.wait) for _ in range(3))]
        futures = await session.submit_tasks(tasks)
        await tasks[0]
        assert len(futures) == 4
        assert futures[1:3] == [futures[1], futures[2]]
        assert futures[3] in futures
        assert repr(futures) == "<futures of 4 tasks, 1 ended>"
        with pytest.raises(IndexError):
            futures[4]
        gate.set()
        assert await asyncio.gather(*futures) == tasks


async def test_canceled_future_spares_its_task(gate: threading.Event) -> None:
    """A canceled future stays canceled, and its task goes on."""
    async with Session() as session:
        task = ComputeTask(function=gate.wait)
        futures = await session.submit_tasks([task])
        futures[0].cancel()
        gate.set()
        assert (await task).return_value is True
        assert futures[0].cancelled()


async def test_canceled_task_cancels_its_future(gate: threading.Event) -> None:
    """The future of a canceled task is canceled."""
    async with Session() as session:
        blocking = [ComputeTask(function=gate.wait) for _ in range(64)]
        futures = await session.submit_tasks(blocking)
        asked = futures[-1]
        await session.cancel_tasks([blocking[-1]])
        with pytest.raises(TaskCanceledError):
            await asked
        gate.set()


async def test_unused_futures_cost_nothing() -> None:
    """A future is made only when it is asked for."""
    async with Session() as session:
        before = _futures()
        tasks = [ComputeTask(function=int) for _ in range(1000)]
        kept = await session.submit_tasks(tasks)
        assert _futures() - before < 100
        await session.wait_tasks(tasks)
        assert len(kept) == 1000


def _futures() -> int:
    return sum(isinstance(thing, asyncio.Future) for thing in gc.get_objects())
