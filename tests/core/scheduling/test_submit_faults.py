"""Backends whose submit, batch or monitor hook fails: what they hold ends, and the session goes on."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from rhapsody.api import (
    BackendError,
    BackendLostError,
    ComputeTask,
    InvalidBackendError,
    Session,
    SubmitError,
    TaskState,
)
from rhapsody.plugin import BackendLost, Backlog, Deadlines, Event, TaskBatch, hookimpl

from ..puppet import Puppet, canceled_from_within, held, some

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.mark.parametrize("kind", ["raises", "raises later", "hangs"])
async def test_failed_submit_fails_its_tasks(kind: str) -> None:
    """A submit that fails fails its own tasks and no others."""

    class Moody(Puppet):
        @hookimpl
        def rhapsody_submit(self, batch: TaskBatch) -> Any:
            if batch.tasks[0].args != ("bad",):
                self.batches.append(batch)
                self.finish(*batch.tasks)
                return None
            if kind == "raises":
                raise ZeroDivisionError("no room")
            return self.later()

        async def later(self) -> None:
            if kind == "hangs":
                await asyncio.sleep(3600)
            raise ZeroDivisionError("no room")

    async with Session(backends=[Moody()]) as session:
        tasks = [ComputeTask(function=int, args=("bad",) if i % 3 == 0 else ()) for i in range(9)]
        await session.submit_tasks(tasks)
        await session.wait_tasks(timeout=30)
        for i, task in enumerate(tasks):
            assert task.state is (TaskState.FAILED if i % 3 == 0 else TaskState.DONE)
        with pytest.raises(SubmitError, match="no answer within" if kind == "hangs" else "no room"):
            await tasks[0]


def frames(error: BaseException) -> list[str]:
    return [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]


async def test_shared_error_keeps_traceback() -> None:
    """Each task that shares an error raises it with the traceback that it came with."""

    class Refuses(Puppet):
        @hookimpl
        def rhapsody_submit(self, batch: TaskBatch) -> None:
            raise SubmitError("no room")

        @hookimpl
        def rhapsody_batch(self, backlog: Backlog) -> Sequence[ComputeTask]:
            return backlog.take(20)

    async with Session(backends=[Refuses()]) as session:
        tasks = some(20)
        futures = await session.submit_tasks(tasks)
        await session.wait_tasks(timeout=30)
        seen = []
        for task, future in zip(tasks, futures, strict=True):
            for wait in (task, future):
                with pytest.raises(SubmitError) as raised:
                    await wait
                seen.append(frames(raised.value))
        assert len({id(task.exception) for task in tasks}) == 1
        assert seen[0] == seen[-2]
        assert seen[1] == seen[-1]
        assert "rhapsody_submit" in seen[-1]


async def test_lost_backend_keeps_traceback() -> None:
    """A lost backend refuses each list with the traceback that the error came with."""
    backend = Puppet()
    async with Session(backends=[backend]) as session:
        backend.context.events.put([BackendLost(BackendLostError("the node is down"))])
        seen = []
        await asyncio.sleep(0.01)
        for _ in range(3):
            with pytest.raises(BackendLostError) as raised:
                await session.submit_tasks(some())
            seen.append(frames(raised.value))
        assert seen[0] == seen[2]


async def test_close_ends_a_submit_first() -> None:
    """A close in the middle of a submit ends the submit first."""
    order: list[str] = []

    class Slow(Puppet):
        deadlines = Deadlines(cancel=0.1)

        @hookimpl
        async def rhapsody_submit(self) -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0.05)  # it takes a moment to let go
                order.append("submit let go")

        @hookimpl
        async def rhapsody_shutdown(self) -> None:
            order.append("shutdown")

    session = Session(backends=[Slow()])
    tasks = some(2)
    await session.submit_tasks(tasks)
    await asyncio.sleep(0.02)
    await session.close(wait=False)
    assert order == ["submit let go", "shutdown"]
    assert all(task.is_final for task in tasks)


@pytest.mark.parametrize(
    "returned",
    [
        lambda backlog: [],
        lambda backlog: backlog.take(1) and [ComputeTask(function=int)],
        lambda backlog: backlog.take(2)[:1],
        lambda backlog: 1 / 0,
        lambda backlog: backlog.take(1) and 7,
    ],
    ids=["nothing", "another task", "fewer than it took", "raises", "a number"],
)
async def test_bad_batch_hook_loses_backend(returned: Any) -> None:
    """A batch hook that returns the wrong thing loses the backend; no task is forgotten."""

    class Wrong(Puppet):
        @hookimpl
        def rhapsody_batch(self, backlog: Any) -> Any:
            return returned(backlog)

    async with Session(backends=[Wrong("wrong")]) as session:
        tasks = some()
        await session.submit_tasks(tasks)
        await session.wait_tasks(timeout=30)
        for task in tasks:
            with pytest.raises(InvalidBackendError, match=r"rhapsody_batch of backend 'wrong'"):
                await task


@pytest.mark.parametrize("ending", ["raises", "ends", "yields nonsense"])
async def test_early_monitor_end_loses_backend(ending: str) -> None:
    """A monitor that ends before its time loses the backend."""

    class Mute(Puppet):
        @hookimpl
        async def rhapsody_monitor(self) -> AsyncIterator[list[Event]]:
            yield []
            while not self.batches:
                await asyncio.sleep(0)
            if ending == "raises":
                raise ZeroDivisionError("lost track")
            if ending == "yields nonsense":
                yield 7  # type: ignore[misc]

    backend = Mute()
    async with Session(backends=[backend]) as session:
        tasks = some()
        await session.submit_tasks(tasks)
        await session.wait_tasks(timeout=30)
        assert all(isinstance(task.exception, BackendError) for task in tasks)
        with pytest.raises(BackendError):
            await session.submit_tasks(some())


async def test_submit_to_dying_backend_fails() -> None:
    """A task submitted to a backend that dies in that moment fails."""

    class Brief(Puppet):
        @hookimpl
        async def rhapsody_monitor(self) -> AsyncIterator[list[Event]]:
            yield [BackendLost(BackendLostError("backend 'puppet' went with the wind"))]
            await asyncio.sleep(3600)

    session = Session(backends=[Brief()])
    tasks = some()
    try:
        await session.submit_tasks(tasks)  # starts the session, and with it the end of the engine
    except BackendLostError:
        pass
    else:
        await session.wait_tasks(tasks, timeout=30)
        assert {type(task.exception) for task in tasks} == {BackendLostError}
    await session.close()


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_submit_canceled_within_fails(kind: str) -> None:
    """A submit that is canceled from within fails its tasks."""

    class Submits(Puppet):
        @hookimpl
        def rhapsody_submit(self) -> Any:
            if kind == "plain":
                raise asyncio.CancelledError
            return canceled_from_within()

    async with Session(backends=[Submits()]) as session:
        tasks = some()
        await session.submit_tasks(tasks)
        await session.wait_tasks(timeout=30)
        assert {type(task.exception) for task in tasks} == {SubmitError}


async def test_monitor_canceled_within() -> None:
    """A monitor that is canceled from within loses the backend, and the session goes on."""

    class Watches(Puppet):
        @hookimpl
        async def rhapsody_monitor(self) -> AsyncIterator[list[Event]]:
            yield []
            while not self.batches:
                await asyncio.sleep(0)
            await canceled_from_within()

    good = Puppet("good")
    async with Session(backends=[good, Watches("bad")]) as session:
        lost = ComputeTask(function=int, backend="bad")
        await session.submit_tasks([lost])
        with pytest.raises(BackendLostError, match="its monitor was canceled from within"):
            await lost
        (task,) = some(1)
        await session.submit_tasks([task])
        await held(good, 1)
        good.finish(task)
        await task
