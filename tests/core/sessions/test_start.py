"""Starts that hang, fail, are abandoned or canceled, and what is validated before one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from rhapsody.api import (
    BackendStartError,
    ComputeTask,
    Resources,
    Session,
    SessionClosedError,
    TaskState,
    UnsupportedError,
)
from rhapsody.plugin import BackendContext, Deadlines, hookimpl
from rhapsody.scheduling import deadlines, driver

from ..puppet import Puppet, canceled_from_within, held, some

pytestmark = pytest.mark.usefixtures("leaves_nothing")


async def test_hanging_init_meets_its_deadline() -> None:
    """An init that hangs is abandoned after its deadline, and shut down."""

    class Hangs(Puppet):
        @hookimpl
        async def rhapsody_init(self) -> None:
            await asyncio.sleep(3600)

    backend = Hangs("sleepy")
    with pytest.raises(BackendStartError, match=r"'sleepy' did not start within 0\.2 seconds"):
        await Session(backends=[backend]).start()
    assert backend.calls == ["shutdown"]


async def test_uncancellable_init_hangs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """An init that ignores its cancellation hangs nobody."""
    monkeypatch.setattr(deadlines, "CANCEL_GRACE", 0.2)
    monkeypatch.setattr(driver, "CANCEL_GRACE", 0.2)
    released = asyncio.Event()

    class Deaf(Puppet):
        @hookimpl
        async def rhapsody_init(self) -> None:
            while not released.is_set():
                try:
                    await released.wait()
                except asyncio.CancelledError:
                    continue

    with pytest.raises(BackendStartError, match="did not start within"):
        await Session(backends=[Deaf()]).start()
    released.set()
    await asyncio.sleep(0.01)


async def test_failed_start_shuts_down_others() -> None:
    """Of three backends, one that fails to start has the other two shut down."""

    class Raises(Puppet):
        @hookimpl
        async def rhapsody_init(self) -> None:
            await asyncio.sleep(0.02)
            raise ZeroDivisionError("no license")

    class Slow(Puppet):
        deadlines = Deadlines(init=60)

        @hookimpl
        async def rhapsody_init(self) -> None:
            await asyncio.sleep(3600)

    quick, slow, bad = Puppet("quick"), Slow("slow"), Raises("bad")
    session = Session(backends=[quick, slow, bad])
    with pytest.raises(BackendStartError, match="'bad' failed to start: ZeroDivisionError: no license"):
        await session.submit_tasks(some())
    assert quick.calls == ["init", "shutdown"]
    assert slow.calls == ["shutdown"]
    assert bad.calls == ["shutdown"]
    with pytest.raises(SessionClosedError):
        await session.submit_tasks(some())
    async with Session(backends=[quick]) as again:  # and they are free for another session
        tasks = some(1)
        await again.submit_tasks(tasks)
        quick.finish(*tasks)


async def test_abandoned_start_goes_on() -> None:
    """A start that one of two waiters abandons goes on for the other."""
    gate = asyncio.Event()

    class Waits(Puppet):
        deadlines = Deadlines(init=60)

        @hookimpl
        async def rhapsody_init(self, context: BackendContext) -> None:
            self.context = context
            await gate.wait()

    backend = Waits()
    session = Session(backends=[backend])
    impatient, patient = some(1), some(1)
    first = asyncio.ensure_future(session.submit_tasks(impatient))
    second = asyncio.ensure_future(session.submit_tasks(patient))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.wait([first])
    gate.set()
    await second
    await held(backend, 1)
    backend.finish(*patient)
    await session.close()
    assert (patient[0].state, impatient[0].state) == (TaskState.DONE, TaskState.NEW)


async def test_close_during_start_is_an_error() -> None:
    """A session that is closed while it starts raises an error that says so."""

    class Slow(Puppet):
        deadlines = Deadlines(init=60)

        @hookimpl
        async def rhapsody_init(self) -> None:
            await asyncio.sleep(3600)

    backend = Slow()
    session = Session(backends=[backend])
    submitting = asyncio.ensure_future(session.submit_tasks(some()))
    await asyncio.sleep(0.01)
    await session.close()
    with pytest.raises(SessionClosedError):
        await submitting
    assert backend.calls == ["shutdown"]


async def test_validation_precedes_start() -> None:
    """Every task with requirements is validated, also before the engine has started."""

    class Validates(Puppet):
        @hookimpl
        def rhapsody_validate(self, tasks: Sequence[ComputeTask]) -> None:
            self.calls.append(f"validate {' '.join(task.uid for task in tasks)}")

    backend = Validates()
    session = Session(backends=[backend])
    tasks = [
        ComputeTask(function=int, uid="plain"),
        ComputeTask(function=int, uid="options", backend_options={"queue": "long"}),
        ComputeTask(function=int, uid="resources", resources=Resources()),
        ComputeTask(executable="true", uid="program"),
        ComputeTask(executable="cat", stdin="x", uid="stdin"),
    ]
    await session.submit_tasks(tasks)
    await held(backend, 5)
    backend.finish(*tasks)
    await session.close()
    assert backend.calls == ["validate options resources program stdin", "init", "shutdown"]


async def test_validation_refuses_whole_list() -> None:
    """A task that validation refuses takes the whole list with it."""

    class Validates(Puppet):
        @hookimpl
        def rhapsody_validate(self, tasks: Sequence[ComputeTask]) -> None:
            raise UnsupportedError(f"task {tasks[0].uid}: no room for what it reads; give it a file")

    backend = Validates()
    async with Session(backends=[backend]) as session:
        tasks = [*some(2), ComputeTask(executable="cat", stdin="x")]
        with pytest.raises(UnsupportedError, match="give it a file"):
            await session.submit_tasks(tasks)
        assert {task.state for task in tasks} == {TaskState.NEW}


async def test_init_canceled_within_fails() -> None:
    """A start that is canceled from within has failed."""

    class Starts(Puppet):
        @hookimpl
        async def rhapsody_init(self) -> None:
            await canceled_from_within()

    with pytest.raises(BackendStartError, match="rhapsody_init of backend 'puppet' was canceled from within"):
        await Session(backends=[Starts()]).start()
