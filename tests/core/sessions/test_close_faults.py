"""Closing while hooks fail, hang or are canceled, and observers that fail."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from rhapsody.api import BackendLostError, BackendShutdownError, Session, TaskState
from rhapsody.plugin import BackendLost, hookimpl

from ..puppet import Puppet, canceled_from_within, held, some

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_close_survives_canceled_hooks(kind: str) -> None:
    """A session closes though cancel and shutdown are canceled from within."""

    class Closes(Puppet):
        @hookimpl
        def rhapsody_cancel(self) -> Any:
            return self.end()

        @hookimpl
        def rhapsody_shutdown(self) -> Any:
            self.calls.append("shutdown")
            return self.end()

        def end(self) -> Any:
            if kind == "plain":
                raise asyncio.CancelledError
            return canceled_from_within()

    backend, other = Closes(), Puppet("other")
    session = Session(backends=[backend, other])
    (task,) = some(1)
    await session.submit_tasks([task])
    await held(backend, 1)
    with pytest.raises(BackendShutdownError, match="rhapsody_shutdown of backend 'puppet' was canceled from within"):
        await session.close(wait=False)
    assert (backend.calls, other.calls) == (["init", "shutdown"], ["init", "shutdown"])
    assert task.state is TaskState.FAILED
    await session.close()


async def test_observer_canceled_within() -> None:
    """An observer that is canceled from within harms nobody."""

    class Watches:
        @hookimpl
        def rhapsody_tasks_changed(self) -> None:
            raise asyncio.CancelledError

    backend = Puppet()
    async with Session(backends=[backend]) as session:
        session.observe(Watches())
        (task,) = some(1)
        await session.submit_tasks([task])
        await held(backend, 1)
        backend.finish(task)
        await task


async def test_concurrent_closes_are_one() -> None:
    """Closing twice at once and in a done callback is one close."""
    backend = Puppet()
    session = Session(backends=[backend])
    tasks = some()
    futures = await session.submit_tasks(tasks)
    await held(backend, 3)
    closings: list[asyncio.Future[None]] = []
    futures[0].add_done_callback(lambda _: closings.append(asyncio.ensure_future(session.close())))
    backend.finish(*tasks)
    await asyncio.gather(session.close(), session.close(), session.close(wait=False))
    await asyncio.gather(*closings)
    await session.close()
    assert backend.calls == ["init", "shutdown"]
    assert len(closings) == 1


async def test_close_shuts_down_dead_backend() -> None:
    """Closing after the backend died shuts it down."""
    backend = Puppet()
    session = Session(backends=[backend])
    tasks = some()
    await session.submit_tasks(tasks)
    backend.context.events.put([BackendLost(BackendLostError("the node is down"))])
    await session.wait_tasks(timeout=30)
    await session.close()
    assert backend.calls == ["init", "shutdown"]
    assert {str(task.exception) for task in tasks} == {"the node is down"}


@pytest.mark.parametrize("fault", ["raises", "hangs"])
async def test_faulty_shutdown_leaves_no_task(fault: str) -> None:
    """A faulty shutdown leaves no task behind, and the other backends are shut down."""

    class Faulty(Puppet):
        @hookimpl
        async def rhapsody_shutdown(self) -> None:
            if fault == "hangs":
                await asyncio.sleep(3600)
            raise ZeroDivisionError("a stuck process")

    bad, good = Faulty("bad"), Puppet("good")
    session = Session(backends=[bad, good])
    tasks = some()
    await session.submit_tasks(tasks)
    with pytest.raises(BackendShutdownError, match="'bad' did not shut" if fault == "hangs" else "a stuck process"):
        await session.close(wait=False)
    assert good.calls == ["init", "shutdown"]
    assert all(task.is_final for task in tasks)
    assert all(task._settler is None for task in tasks)


async def test_interrupted_close_still_closes() -> None:
    """A close that is interrupted cancels what is left and closes."""
    backend = Puppet()
    session = Session(backends=[backend])
    tasks = some()
    await session.submit_tasks(tasks)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(session.close(), 0.05)
    assert backend.calls == ["init", "shutdown"]
    assert all(task.is_final for task in tasks)


async def test_observers_are_independent() -> None:
    """An observer that raises does not silence the others."""
    seen: list[TaskState] = []

    class Raises:
        @hookimpl
        def rhapsody_tasks_changed(self) -> None:
            raise ZeroDivisionError

    class Sees:
        @hookimpl
        def rhapsody_tasks_changed(self, transitions: Any) -> None:
            seen.extend(change.new for change in transitions)

    backend = Puppet()
    async with Session(backends=[backend]) as session:
        for observer in (Raises(), Sees(), Raises()):
            session.observe(observer)
        (task,) = some(1)
        await session.submit_tasks([task])
        backend.finish(task)
    assert seen == [TaskState.QUEUED, TaskState.DONE]
