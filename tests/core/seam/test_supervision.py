"""What the context offers beside the channel: polls, functions in threads, a monitor of the backend's own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from rhapsody.api import BackendLostError, InvalidBackendError, Session
from rhapsody.plugin import Deadlines, Event, Outcome, TaskState, hookimpl

from ..puppet import Puppet, held, some

pytestmark = pytest.mark.usefixtures("leaves_nothing")


class Polled(Puppet):
    """Learns by polling how its tasks ended."""

    fails = False

    @hookimpl
    async def rhapsody_init(self, context: Any) -> None:
        await super().rhapsody_init(context)
        context.poll(0.005, self.report_ended)

    async def report_ended(self) -> None:
        await asyncio.sleep(0)
        if self.fails:
            raise OSError("the queue does not answer")
        tasks = [task for batch in self.batches for task in batch.tasks]
        self.batches.clear()
        self.finish(*tasks)


async def test_poll_is_called_again_and_again() -> None:
    """A poll reports what it finds, for the life of the backend."""
    async with Session(backends=[Polled()]) as session:
        for _ in range(3):
            await asyncio.gather(*await session.submit_tasks(some(2)))


async def test_poll_that_raises_loses_the_backend() -> None:
    """What a poll raises is BackendLost: its tasks fail, and the cause is what was raised."""
    backend = Polled()
    async with Session(backends=[backend]) as session:
        backend.fails = True
        (future, _) = await session.submit_tasks(some(2))
        with pytest.raises(BackendLostError, match="its poll report_ended raised OSError: the queue") as caught:
            await future
        assert isinstance(caught.value.__cause__, OSError)


async def test_poll_may_fail_during_shutdown() -> None:
    """What a poll raises while the backend is being shut down changes nothing."""

    class Ends(Polled):
        @hookimpl
        async def rhapsody_shutdown(self) -> None:
            self.fails = True
            await asyncio.sleep(0.05)

    async with Session(backends=[Ends()]) as session:
        await asyncio.gather(*await session.submit_tasks(some(1)))


@pytest.mark.parametrize("arguments", [(0.1, None), (0, print), ("soon", print)])
async def test_poll_takes_seconds_and_a_function(arguments: Any) -> None:
    """What is no interval and no function is refused where `poll` is called."""
    async with Session(backends=[backend := Puppet()]):
        with pytest.raises(InvalidBackendError, match="poll takes"):
            backend.context.poll(*arguments)


async def test_monitor_adds_to_the_channel() -> None:
    """With a monitor of the backend's own, what is put into the channel arrives all the same."""

    class Streams(Puppet):
        def __init__(self) -> None:
            super().__init__()
            self.found: asyncio.Queue[list[Event]] = asyncio.Queue()

        @hookimpl
        async def rhapsody_monitor(self) -> AsyncIterator[list[Event]]:
            while events := await self.found.get():
                yield events

        @hookimpl
        async def rhapsody_shutdown(self) -> None:
            self.found.put_nowait([])

    async with Session(backends=[backend := Streams()]) as session:
        one, other = some(2)
        futures = await session.submit_tasks([one, other])
        await held(backend, 2)
        backend.found.put_nowait([Outcome(one.uid, TaskState.DONE, "yielded")])
        backend.context.events.put([Outcome(other.uid, TaskState.DONE, "put")])
        await asyncio.gather(*futures)
        assert (one.return_value, other.return_value) == ("yielded", "put")


class Slow(Puppet):
    """Its engine starts in a function that blocks."""

    deadlines = Deadlines(init=0.05, shutdown=5)

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.engine: str | None = None
        self.found: str | None = None

    def start(self) -> str:
        self.go.wait(10)
        self.engine = "engine"
        return self.engine

    @hookimpl
    async def rhapsody_init(self, context: Any) -> None:
        assert await context.in_thread(self.start) == "engine"
        await super().rhapsody_init(context)

    @hookimpl
    async def rhapsody_shutdown(self) -> None:
        self.found = self.engine


async def test_function_in_thread() -> None:
    """The result of a function in a thread comes back; the loop goes on meanwhile."""
    backend = Slow()
    asyncio.get_running_loop().call_later(0.01, backend.go.set)
    async with Session(backends=[backend]):
        assert backend.engine == "engine"


async def test_interrupted_start_ends_before_shutdown() -> None:
    """A start that is given up in its thread has ended when shutdown is called, which finds the engine."""
    backend = Slow()
    start = asyncio.create_task(Session(backends=[backend]).start())
    await asyncio.sleep(0.02)
    start.cancel()
    await asyncio.sleep(0.02)
    backend.go.set()
    await asyncio.wait([start])
    assert backend.found == "engine"
