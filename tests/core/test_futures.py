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


async def test_a_future_is_the_same_however_often_and_however_late_it_is_asked_for(gate: threading.Event) -> None:
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


async def test_a_future_asked_for_after_the_end_tells_of_it() -> None:
    async with Session() as session:
        tasks = [ComputeTask(function=int, args=(text,)) for text in ("7", "x")]
        futures = await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)
        assert futures[0].result() is tasks[0]
        with pytest.raises(ValueError, match="invalid literal"):
            await futures[1]


async def test_they_read_like_a_list(gate: threading.Event) -> None:
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


async def test_a_canceled_future_stays_canceled_and_its_task_goes_on(gate: threading.Event) -> None:
    async with Session() as session:
        task = ComputeTask(function=gate.wait)
        futures = await session.submit_tasks([task])
        futures[0].cancel()
        gate.set()
        assert (await task).return_value is True
        assert futures[0].cancelled()


async def test_the_future_of_a_canceled_task_says_so(gate: threading.Event) -> None:
    async with Session() as session:
        blocking = [ComputeTask(function=gate.wait) for _ in range(64)]
        futures = await session.submit_tasks(blocking)
        asked = futures[-1]
        await session.cancel_tasks([blocking[-1]])
        with pytest.raises(TaskCanceledError):
            await asked
        gate.set()


async def test_nobody_who_asks_for_none_pays_for_them() -> None:
    async with Session() as session:
        before = _futures()
        tasks = [ComputeTask(function=int) for _ in range(1000)]
        kept = await session.submit_tasks(tasks)
        assert _futures() - before < 100
        await session.wait_tasks(tasks)
        assert len(kept) == 1000


def _futures() -> int:
    return sum(isinstance(thing, asyncio.Future) for thing in gc.get_objects())
