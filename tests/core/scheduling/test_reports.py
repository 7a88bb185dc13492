"""Reports that are late, repeated, senseless or take a task back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from rhapsody.api import (
    BackendError,
    CancelResult,
    ComputeTask,
    InvalidBackendError,
    Session,
    TaskState,
    WorkerLostError,
)
from rhapsody.plugin import Outcome, Returned, Started, hookimpl

from ..puppet import Puppet, held, some

pytestmark = pytest.mark.usefixtures("leaves_nothing")


async def test_stray_reports_change_nothing() -> None:
    """Reports that come twice, too late or for unknown tasks change nothing."""
    backend = Puppet()
    async with Session(backends=[backend]) as session:
        one, two = some(2)
        await session.submit_tasks([one, two])
        await held(backend, 2)
        put = backend.context.events.put
        put([Outcome("unknown", TaskState.DONE), Started("unknown", 0.0), Returned(["unknown"])])
        put([Outcome(one.uid, TaskState.DONE, 1), Outcome(one.uid, TaskState.FAILED, exception=ValueError())])
        put([Started(one.uid, 0.0), Returned([one.uid]), Outcome(one.uid, TaskState.DONE, 2)])
        assert (await one).return_value == 1
        put([Outcome(two.uid, TaskState.DONE, "two")])
        assert (await two).return_value == "two"
        assert (one.state, one.return_value) == (TaskState.DONE, 1)
    put([Outcome(one.uid, TaskState.DONE, 3)])  # after close
    assert one.return_value == 1


async def test_foreign_thread_reports_arrive() -> None:
    """Reports from a foreign thread arrive."""
    backend = Puppet()
    async with Session(backends=[backend]) as session:
        tasks = some(1000)
        await session.submit_tasks(tasks)
        await held(backend, 1000)
        halves = [tasks[:500], tasks[500:]]
        threads = [threading.Thread(target=lambda half=half: list(map(backend.finish, half))) for half in halves]
        for thread in threads:
            thread.start()
        await session.wait_tasks(timeout=30)
        for thread in threads:
            thread.join()
        assert {task.return_value for task in tasks} == {"value"}


@pytest.mark.parametrize(
    "outcome",
    [
        {"state": TaskState.FAILED},
        {"state": TaskState.FAILED, "exception": "only text"},
        {"state": TaskState.RUNNING},
    ],
)
async def test_senseless_outcome_fails_task(outcome: dict[str, Any]) -> None:
    """An outcome that makes no sense fails the task and names the backend."""
    backend = Puppet()
    async with Session(backends=[backend]) as session:
        (task,) = some(1)
        await session.submit_tasks([task])
        await held(backend, 1)
        backend.context.events.put([Outcome(task.uid, **outcome)])
        with pytest.raises(BackendError, match=rf"'puppet'.*{task.uid}"):
            await task


@pytest.mark.parametrize("garbage", [None, "text", 7, Outcome])
async def test_report_that_is_no_event(garbage: Any) -> None:
    """A report that is no event loses the backend and hangs nobody."""
    backend = Puppet()
    async with Session(backends=[backend]) as session:
        tasks = some()
        await session.submit_tasks(tasks)
        await held(backend, 3)
        backend.context.events.put([garbage])
        await session.wait_tasks(timeout=30)
        assert {type(task.exception) for task in tasks} == {InvalidBackendError}


async def test_returned_after_start_is_failed() -> None:
    """A task that is returned after it had started fails and does not run twice."""
    backend = Puppet()
    async with Session(backends=[backend]) as session:
        started, fresh = some(2)
        await session.submit_tasks([started, fresh])
        await held(backend, 2)
        backend.context.events.put([Started(started.uid, time.time()), Returned([started.uid, fresh.uid])])
        with pytest.raises(WorkerLostError, match="after it had started"):
            await started
        await held(backend, 3)  # the other one is handed over again
        assert backend.tasks == [started, fresh, fresh]
        backend.finish(fresh)
        await fresh
        assert fresh.attempt <= 1


async def test_returned_in_cancel_is_canceled() -> None:
    """A task that is returned while it is canceled is canceled and does not run again."""

    class Returns(Puppet):
        @hookimpl
        async def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
            self.context.events.put([Returned([task.uid for task in tasks])])
            await asyncio.sleep(0.02)
            return {task.uid: CancelResult.CANNOT_STOP for task in tasks}

    backend = Returns()
    async with Session(backends=[backend]) as session:
        (task,) = some(1)
        await session.submit_tasks([task])
        await held(backend, 1)
        assert await session.cancel_tasks([task]) == {task.uid: CancelResult.NEVER_STARTED}
        assert (task.state, len(backend.tasks)) == (TaskState.CANCELED, 1)


async def test_returned_after_failed_cancel() -> None:
    """A task that could not be stopped and is returned later does not run again."""
    backend = Puppet()
    backend_cancel: list[str] = []

    class Helpless(Puppet):
        @hookimpl
        def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
            backend_cancel.extend(task.uid for task in tasks)
            return {}

    backend = Helpless()
    async with Session(backends=[backend]) as session:
        (task,) = some(1)
        await session.submit_tasks([task])
        await held(backend, 1)
        assert await session.cancel_tasks([task]) == {task.uid: CancelResult.CANNOT_STOP}
        backend.context.events.put([Returned([task.uid])])
        await session.wait_tasks(timeout=30)
        assert (task.state, len(backend.tasks)) == (TaskState.CANCELED, 1)


@pytest.mark.parametrize("fault", ["raises", "hangs", "returns None", "returns text", "lies"])
async def test_faulty_cancel_keeps_real_ends(fault: str) -> None:
    """A faulty cancel hook leaves the tasks their real end."""

    class Faulty(Puppet):
        @hookimpl
        async def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> Any:
            if fault == "raises":
                raise ZeroDivisionError
            if fault == "hangs":
                await asyncio.sleep(3600)
            if fault == "lies":
                return {task.uid: CancelResult.STOPPED for task in tasks}
            return None if fault == "returns None" else "text"

    backend = Faulty()
    async with Session(backends=[backend]) as session:
        (task,) = some(1)
        await session.submit_tasks([task])
        await held(backend, 1)
        assert await session.cancel_tasks([task]) == {task.uid: CancelResult.CANNOT_STOP}
        backend.finish(task)
        assert (await task).return_value == "value"


async def test_abandoned_wait_leaves_the_task() -> None:
    """Abandoning a wait in any way leaves the task to its normal end."""
    backend = Puppet()
    async with Session(backends=[backend]) as session:
        tasks = some(4)
        futures = await session.submit_tasks(tasks)
        await held(backend, 4)

        async def wait(task: ComputeTask) -> None:
            await task

        with pytest.raises(TimeoutError):
            await session.wait_tasks(tasks, timeout=0.01)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(futures[0], 0.01)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wait(tasks[1]), 0.01)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.gather(*futures[2:])
        assert futures[3].cancelled()
        assert {task.state for task in tasks} == {TaskState.QUEUED}
        backend.finish(*tasks)
        await session.wait_tasks(tasks, timeout=30)
        assert {task.state for task in tasks} == {TaskState.DONE}
        assert (await tasks[0]).return_value == "value"
