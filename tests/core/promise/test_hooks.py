"""Backends that break their contract: what they hold ends, what waits ends, and the session closes."""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from rhapsody import flow
from rhapsody.api import (
    BackendError,
    BackendLostError,
    BackendShutdownError,
    BackendStartError,
    CancelResult,
    ComputeTask,
    InvalidBackendError,
    Resources,
    Session,
    SessionClosedError,
    SubmitError,
    TaskState,
    UnsupportedError,
    WorkerLostError,
)
from rhapsody.hooks import AWAITED
from rhapsody.hookspecs import BackendHooks
from rhapsody.plugin import (
    BackendCapabilities,
    BackendContext,
    BackendLost,
    Backlog,
    Capacity,
    Deadlines,
    Event,
    ExecutionBackend,
    Outcome,
    Returned,
    Started,
    TaskBatch,
    hookimpl,
)

pytestmark = pytest.mark.usefixtures("leaves_nothing")


class Puppet(ExecutionBackend):
    """Holds what it is given; the test says what becomes of it."""

    capabilities = BackendCapabilities(options=None)
    deadlines = Deadlines(init=0.2, submit=0.2, cancel=0.2, shutdown=0.2)

    def __init__(self, name: str = "puppet") -> None:
        super().__init__(name)
        self.batches: list[TaskBatch] = []
        self.calls: list[str] = []

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        self.calls.append("init")
        self.context = context
        context.set_capacity(Capacity(4, units=1000))

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> Any:
        self.batches.append(batch)

    @hookimpl
    async def rhapsody_shutdown(self) -> None:
        self.calls.append("shutdown")

    @property
    def tasks(self) -> list[ComputeTask]:
        return [task for batch in self.batches for task in batch.tasks]

    def finish(self, *tasks: ComputeTask) -> None:
        self.context.events.put([Outcome(task.uid, TaskState.DONE, "value") for task in tasks])


def some(count: int = 3) -> list[ComputeTask]:
    return [ComputeTask(function=int) for _ in range(count)]


async def held(backend: Puppet, count: int) -> None:
    while len(backend.tasks) < count:
        await asyncio.sleep(0)


# -- hooks that are called and not awaited ---------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["rhapsody_validate", "rhapsody_batch", "rhapsody_monitor"])
def test_a_coroutine_function_is_refused_for_a_hook_that_is_not_awaited(hook: str) -> None:
    async def never_awaited(self: Puppet) -> None: ...

    backend = type("Async", (Puppet,), {hook: hookimpl(never_awaited)})()
    with pytest.raises(InvalidBackendError, match=rf"Async has {hook} as a coroutine function.*make it a plain method"):
        Session(backends=[backend])


def test_an_async_generator_is_refused_for_every_hook_but_the_monitor() -> None:
    class Streams(Puppet):
        @hookimpl
        async def rhapsody_validate(self) -> AsyncIterator[None]:
            yield None

    with pytest.raises(InvalidBackendError, match="Streams has rhapsody_validate"):
        Session(backends=[Streams()])


@pytest.mark.parametrize("hook", ["rhapsody_session_opened", "rhapsody_tasks_changed", "rhapsody_session_closed"])
def test_a_coroutine_function_is_refused_for_the_hooks_of_observers(hook: str) -> None:
    async def never_awaited(self: object) -> None: ...

    observer = type("Async", (), {hook: hookimpl(never_awaited)})()
    with pytest.raises(InvalidBackendError, match=f"has {hook} as a coroutine function"):
        Session().observe(observer)


def test_the_hooks_that_are_awaited_are_those_that_the_specification_says_may_return_an_awaitable() -> None:
    returns = {name: str(hook.__annotations__["return"]) for name, hook in vars(BackendHooks).items() if callable(hook)}
    assert {name for name, returned in returns.items() if "Awaitable" in returned} == set(AWAITED)


# -- init ------------------------------------------------------------------------------------------------------------


async def test_an_init_that_hangs_is_given_up_after_its_deadline_and_shut_down() -> None:
    class Hangs(Puppet):
        @hookimpl
        async def rhapsody_init(self) -> None:
            await asyncio.sleep(3600)

    backend = Hangs("sleepy")
    with pytest.raises(BackendStartError, match=r"'sleepy' did not start within 0\.2 seconds"):
        await Session(backends=[backend]).start()
    assert backend.calls == ["shutdown"]


async def test_an_init_that_does_not_listen_to_being_canceled_hangs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "_DEAF", 0.2)
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


async def test_of_three_backends_one_that_fails_to_start_has_the_other_two_shut_down() -> None:
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


async def test_a_start_that_one_of_two_waiters_gives_up_goes_on_for_the_other() -> None:
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


async def test_a_session_that_is_closed_while_it_starts_says_so() -> None:
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


# -- validate ---------------------------------------------------------------------------------------------------------


async def test_every_task_that_asks_for_something_is_validated_also_before_the_engine_has_started() -> None:
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


async def test_a_task_that_validation_refuses_takes_the_whole_list_with_it() -> None:
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


# -- submit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["raises", "raises later", "hangs"])
async def test_a_submit_that_fails_fails_its_tasks_and_no_others(kind: str) -> None:
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


async def test_an_error_that_many_tasks_share_is_raised_by_each_with_the_traceback_that_it_came_with() -> None:
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


async def test_a_lost_backend_refuses_each_list_with_the_traceback_that_the_error_came_with() -> None:
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


async def test_a_close_in_the_middle_of_a_submit_ends_the_submit_first() -> None:
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
async def test_a_batch_hook_that_returns_the_wrong_thing_loses_the_backend_and_no_task_is_forgotten(
    returned: Any,
) -> None:
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


# -- reports ---------------------------------------------------------------------------------------------------------


async def test_reports_that_come_twice_too_late_or_for_unknown_tasks_change_nothing() -> None:
    backend = Puppet()
    async with Session(backends=[backend]) as session:
        one, two = some(2)
        await session.submit_tasks([one, two])
        await held(backend, 2)
        put = backend.context.events.put
        put([Outcome("never heard of", TaskState.DONE), Started("never heard of", 0.0), Returned(["never heard of"])])
        put([Outcome(one.uid, TaskState.DONE, 1), Outcome(one.uid, TaskState.FAILED, exception=ValueError())])
        put([Started(one.uid, 0.0), Returned([one.uid]), Outcome(one.uid, TaskState.DONE, 2)])
        assert (await one).return_value == 1
        put([Outcome(two.uid, TaskState.DONE, "two")])
        assert (await two).return_value == "two"
        assert (one.state, one.return_value) == (TaskState.DONE, 1)
    put([Outcome(one.uid, TaskState.DONE, 3)])  # after close
    assert one.return_value == 1


async def test_reports_from_a_foreign_thread_arrive() -> None:
    backend = Puppet()
    async with Session(backends=[backend]) as session:
        tasks = some(1000)
        await session.submit_tasks(tasks)
        await held(backend, 1000)
        halves = [tasks[:500], tasks[500:]]
        threads = [
            threading.Thread(target=lambda half=half: [backend.finish(task) for task in half]) for half in halves
        ]
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
        {"state": "DONE?"},
        {"state": TaskState.RUNNING},
        {"state": None},
    ],
)
async def test_an_outcome_that_makes_no_sense_fails_the_task_and_names_the_backend(outcome: dict[str, Any]) -> None:
    backend = Puppet()
    async with Session(backends=[backend]) as session:
        (task,) = some(1)
        await session.submit_tasks([task])
        await held(backend, 1)
        backend.context.events.put([Outcome(task.uid, **outcome)])
        with pytest.raises(BackendError, match=rf"'puppet'.*{task.uid}"):
            await task


@pytest.mark.parametrize("garbage", [None, "text", 7, Outcome])
async def test_a_report_that_is_no_event_loses_the_backend_and_hangs_nobody(garbage: Any) -> None:
    backend = Puppet()
    async with Session(backends=[backend]) as session:
        tasks = some()
        await session.submit_tasks(tasks)
        await held(backend, 3)
        backend.context.events.put([garbage])
        await session.wait_tasks(timeout=30)
        assert {type(task.exception) for task in tasks} == {InvalidBackendError}


@pytest.mark.parametrize("ending", ["raises", "ends", "yields nonsense"])
async def test_a_monitor_that_ends_before_its_time_loses_the_backend(ending: str) -> None:
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


async def test_a_task_that_comes_back_after_it_had_started_fails_and_is_not_run_twice() -> None:
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


async def test_a_task_that_comes_back_while_it_is_canceled_is_canceled_and_not_run_again() -> None:
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


async def test_a_task_that_could_not_be_stopped_and_comes_back_later_is_not_run_again() -> None:
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
async def test_a_cancel_hook_at_fault_leaves_the_tasks_their_real_end(fault: str) -> None:
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


async def test_a_task_submitted_to_a_backend_that_dies_in_that_moment_fails() -> None:
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


# -- a hook that ends by a CancelledError, and nobody canceled it ----------------------------------------------------


async def canceled_from_within() -> Any:
    within = asyncio.ensure_future(asyncio.sleep(3600))
    asyncio.get_running_loop().call_soon(within.cancel)
    await within


async def test_a_start_that_is_canceled_from_within_has_failed() -> None:
    class Starts(Puppet):
        @hookimpl
        async def rhapsody_init(self) -> None:
            await canceled_from_within()

    with pytest.raises(BackendStartError, match="rhapsody_init of backend 'puppet' was canceled from within"):
        await Session(backends=[Starts()]).start()


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_submit_that_is_canceled_from_within_fails_its_tasks(kind: str) -> None:
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


async def test_a_monitor_that_is_canceled_from_within_loses_the_backend_and_the_session_goes_on() -> None:
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


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_session_closes_though_cancel_and_shutdown_are_canceled_from_within(kind: str) -> None:
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


async def test_an_observer_that_is_canceled_from_within_harms_nobody() -> None:
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


# -- close -----------------------------------------------------------------------------------------------------------


async def test_close_twice_at_once_and_in_a_done_callback_is_one_close() -> None:
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


async def test_close_after_the_backend_died_shuts_it_down() -> None:
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
async def test_a_shutdown_at_fault_leaves_no_task_behind_and_the_other_backends_shut_down(fault: str) -> None:
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
    assert all(task._future is None for task in tasks)


async def test_a_close_that_is_interrupted_cancels_what_is_left_and_closes() -> None:
    backend = Puppet()
    session = Session(backends=[backend])
    tasks = some()
    await session.submit_tasks(tasks)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(session.close(), 0.05)
    assert backend.calls == ["init", "shutdown"]
    assert all(task.is_final for task in tasks)


async def test_an_observer_that_raises_does_not_silence_the_others() -> None:
    seen: list[TaskState] = []

    class Raises:
        @hookimpl
        def rhapsody_tasks_changed(self) -> None:
            raise ZeroDivisionError

    class Sees:
        @hookimpl
        def rhapsody_tasks_changed(self, transitions: Any) -> None:
            seen.extend(new for _, _, new in transitions)

    backend = Puppet()
    async with Session(backends=[backend]) as session:
        for observer in (Raises(), Sees(), Raises()):
            session.observe(observer)
        (task,) = some(1)
        await session.submit_tasks([task])
        backend.finish(task)
    assert seen == [TaskState.QUEUED, TaskState.DONE]


# -- waiting never cancels -------------------------------------------------------------------------------------------


async def test_giving_up_a_wait_in_any_way_leaves_the_task_to_its_normal_end() -> None:
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
