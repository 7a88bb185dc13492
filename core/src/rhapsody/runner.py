"""Drives one attached backend: starts it, feeds it from the backlog, applies what it reports, shuts it down.

This is the one place that calls a backend's hooks, and the one that awaits them.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .batch import TaskBatch
from .batching import AdaptiveBatching, Backlog
from .context import BackendContext
from .errors import (
    BackendError,
    BackendLostError,
    BackendShutdownError,
    BackendStartError,
    InvalidBackendError,
    SubmitError,
    TaskCanceledError,
)
from .events import (
    BackendLost,
    CancelResult,
    Capacity,
    CapacityChanged,
    Event,
    Outcome,
    Returned,
    Started,
)
from .hooks import BackendCaller
from .log import get_logger
from .states import FINAL_STATES, TaskState
from .task import ComputeTask

if TYPE_CHECKING:
    from .backends.base import ExecutionBackend

log = get_logger(__name__)

Change = tuple[ComputeTask, Started | Outcome]
Sink = Callable[[Sequence[Change]], None]

_LAST_EVENTS: Final = 2.0  # seconds that a monitor may take to end after its backend was shut down


class Phase(Enum):
    """Where a runner is in its life."""

    NEW = auto()
    STARTING = auto()
    OPEN = auto()
    LOST = auto()  # the engine is gone; what is left is to shut down
    CLOSING = auto()
    CLOSED = auto()


class BackendRunner:
    """Runs one backend for one session.

    Args:
        backend: the plugin.
        session: uid of the session.
        work_dir: where the session's sandbox will be.
        sink: called on the loop with what happened to tasks, in order.
        on_abandoned: called if the loop is torn down around an open runner.

    Raises:
        InvalidBackendError: the backend does not match the hook specifications.
    """

    def __init__(
        self,
        backend: ExecutionBackend,
        *,
        session: str,
        work_dir: Path,
        sink: Sink,
        on_abandoned: Callable[[], None] = lambda: None,
    ) -> None:
        self.backend = backend
        self.name = backend.name
        self.phase = Phase.NEW
        self.error: Exception | None = None  # why it was lost
        self._session = session
        self._work_dir = work_dir
        self._sink = sink
        self._on_abandoned = on_abandoned
        self._batching = AdaptiveBatching(backend.batching)
        self._hooks = BackendCaller(backend, self._batching)
        self._context: BackendContext | None = None
        self._capacity = Capacity(slots=1, units=1)
        self._backlog = Backlog()
        self._held: dict[str, ComputeTask] = {}  # tasks in the engine's hands
        self._units = 0  # batches in the engine's hands
        self._batches = 0  # batches ever
        self._pumping = False
        self._starting: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._submitting: asyncio.Task[None] | None = None
        self._monitor: asyncio.Task[None] | None = None

    # -- the life of the backend ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the backend; any number of callers wait for the one start.

        Raises:
            BackendStartError: it raised, or did not come up within its deadline. It has been shut down.
        """
        if self.phase is Phase.OPEN:
            return
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(), name=f"rhapsody start {self.name}")
        try:
            await asyncio.shield(self._starting)
        except asyncio.CancelledError:
            if not self._starting.done():  # the caller was interrupted: nobody waits for this start any more
                self._starting.cancel()
                await asyncio.wait([self._starting], timeout=self.backend.deadlines.shutdown)
            raise

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = self.backend.deadlines.init
        self.phase = Phase.STARTING
        self._context = BackendContext(backend=self.name, session=self._session, work_dir=self._work_dir, loop=loop)
        log.info("backend_starting", backend=self.name)
        began = time.monotonic()
        problem: str | None = None
        cause: BaseException | None = None
        try:
            async with asyncio.timeout(deadline):
                await _settled(self._hooks.init(self._context))
        except TimeoutError as error:
            cause, problem = error, f"did not start within {deadline:g} seconds"
            if time.monotonic() - began < deadline:
                problem = f"failed to start: TimeoutError: {error}"
        except asyncio.CancelledError as error:
            cause = error
        except Exception as error:
            cause, problem = error, f"failed to start: {type(error).__name__}: {error}"
        if cause is None:
            self._capacity = self._context.capacity
            self.phase = Phase.OPEN
            self._monitor = asyncio.create_task(self._follow(), name=f"rhapsody monitor {self.name}")
            log.info("backend_started", backend=self.name, seconds=round(time.monotonic() - began, 3))
            self._pump()
            return
        self.phase = Phase.CLOSING
        failure = BackendStartError(f"backend {self.name!r} {problem or 'was interrupted while it started'}")
        try:
            await self._call_shutdown(wait=False)
        except BackendShutdownError as error:
            failure.add_note(str(error))
        self._end(failure)
        if problem is None:
            raise asyncio.CancelledError
        raise failure from cause

    async def shutdown(self, wait: bool) -> None:
        """Shut the backend down; any number of callers wait for the one shutdown.

        Raises:
            BackendShutdownError: it raised, or did not end within its deadline.
        """
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting])
        if self._closing is None:
            if self.phase in (Phase.NEW, Phase.CLOSED):
                self._end(None)
                return
            self._closing = asyncio.create_task(self._shutdown(wait), name=f"rhapsody shutdown {self.name}")
        await asyncio.shield(self._closing)

    async def _shutdown(self, wait: bool) -> None:
        self.phase = Phase.CLOSING
        if self._submitting is not None:
            self._submitting.cancel()
        try:
            await self._call_shutdown(wait)
        finally:
            assert self._context is not None
            self._context.events.close()
            if self._monitor is not None:
                await asyncio.wait([self._monitor], timeout=_LAST_EVENTS)
                if not self._monitor.done():
                    log.warning("monitor_did_not_end", backend=self.name)
                    self._monitor.cancel()
                    await asyncio.wait([self._monitor])
            self._end(self.error)

    async def _call_shutdown(self, wait: bool) -> None:
        deadline = self.backend.deadlines.shutdown
        try:
            async with asyncio.timeout(deadline):
                await _settled(self._hooks.shutdown(wait))
        except TimeoutError as error:
            raise BackendShutdownError(
                f"backend {self.name!r} did not shut down within {deadline:g} seconds"
            ) from error
        except Exception as error:
            raise BackendShutdownError(
                f"backend {self.name!r} failed to shut down: {type(error).__name__}: {error}"
            ) from error

    def _end(self, error: Exception | None) -> None:
        """Leave no task behind: whatever has no outcome by now will never have one."""
        self.phase = Phase.CLOSED
        self.error = self.error or error
        if self._context is not None:
            self._context.events.close()
        self._fail_all(error or BackendLostError(f"backend {self.name!r} was shut down before the task ended"))

    async def _follow(self) -> None:
        """Apply events for the life of the backend."""
        try:
            async for events in self._hooks.monitor():
                self._apply(events)
                events.clear()  # what they hold is the tasks' now, and must not live on in a waiting frame
            if self.phase is Phase.OPEN:
                self._lose(InvalidBackendError(f"the monitor of backend {self.name!r} ended while the backend is open"))
        except asyncio.CancelledError:
            if self.phase in (Phase.OPEN, Phase.LOST):  # the loop is torn down around us: the last chance to clean up
                await self._abandon()
            raise
        except Exception as error:
            lost = BackendLostError(f"backend {self.name!r}: its monitor raised {type(error).__name__}: {error}")
            lost.__cause__ = error
            self._lose(lost)

    async def _abandon(self) -> None:
        self._on_abandoned()
        self.phase = Phase.CLOSING
        failure: Exception | None = None
        try:
            await self._call_shutdown(wait=False)
        except BackendShutdownError as error:
            failure = error
            log.error("abandoned_backend_did_not_shut_down", backend=self.name, error=str(error))
        self._end(failure)

    def shutdown_without_loop(self) -> None:
        """Shut down at the end of the program, after the session's loop is gone."""
        if self.phase not in (Phase.OPEN, Phase.LOST, Phase.STARTING):
            return
        self.phase = Phase.CLOSING
        try:
            asyncio.run(self._call_shutdown(wait=False))
        except (
            BackendShutdownError,
            RuntimeError,
        ) as error:  # RuntimeError: the interpreter is too far gone for a loop
            log.error("abandoned_backend_did_not_shut_down", backend=self.name, error=str(error))
        self.phase = Phase.CLOSED

    # -- tasks go down ---------------------------------------------------------------------------------------------

    def validate(self, tasks: Sequence[ComputeTask]) -> None:
        """Refuse tasks that the backend cannot honour.

        Raises:
            UnsupportedError: it cannot; nothing was accepted.
        """
        self._hooks.validate(tasks)

    def enqueue(self, tasks: Sequence[ComputeTask]) -> None:
        """Take tasks that the session has accepted."""
        self._backlog.add(tasks)
        self._pump()

    @property
    def unfinished(self) -> int:
        """How many tasks wait or are in the engine's hands."""
        return len(self._backlog) + len(self._held)

    def _pump(self) -> None:
        """Submit units while tasks wait and there is room; one submission at a time."""
        if self._pumping or self.phase is not Phase.OPEN:
            return
        self._pumping = True
        try:
            while self.phase is Phase.OPEN and len(self._backlog) and self._has_room():
                batch = self._next_batch()
                if batch is None:
                    return
                try:
                    pending = self._hooks.submit(batch)
                except Exception as error:
                    self._refused(batch, error)
                    continue
                if inspect.isawaitable(pending):
                    self._submitting = asyncio.create_task(
                        self._finish_submit(batch, pending), name=f"rhapsody submit {self.name}"
                    )
                    return
        finally:
            if self._submitting is None:
                self._pumping = False

    async def _finish_submit(self, batch: TaskBatch, pending: Awaitable[None]) -> None:
        """Await an asynchronous submission, then go on with the next."""
        deadline = self.backend.deadlines.submit
        try:
            async with asyncio.timeout(deadline):
                await pending
        except TimeoutError as error:
            self._refused(batch, error if str(error) else TimeoutError(f"no answer within {deadline:g} seconds"))
        except Exception as error:
            self._refused(batch, error)
        finally:
            self._submitting = None
            self._pumping = False
        self._pump()

    def _has_room(self) -> bool:
        capacity = self._capacity
        if capacity.slots < 1:
            return False
        units = capacity.slots if capacity.units is None and capacity.tasks is None else capacity.units
        return (units is None or self._units < units) and (capacity.tasks is None or len(self._held) < capacity.tasks)

    def _next_batch(self) -> TaskBatch | None:
        backlog = self._backlog
        backlog.slots = self._capacity.slots
        backlog.free = max(0, backlog.slots - self._units)
        problem: str | None = None
        chosen: object = None
        self._batching.chose = False
        try:
            chosen = self._hooks.batch(backlog)
        except Exception as error:
            problem = f"raised {type(error).__name__}: {error}"
        taken = backlog.taken()
        if problem is None and not (isinstance(chosen, Sequence) and len(chosen) == len(taken) > 0):
            problem = "must return the tasks that it took off the backlog, at least one"
        learns = self._batching.chose
        if problem is None and not learns and {id(t) for t in taken} != {id(t) for t in chosen}:  # type: ignore[attr-defined]
            problem = "returned other tasks than it took off the backlog"
        if problem is not None:
            backlog.put_back(taken)
            self._lose(InvalidBackendError(f"rhapsody_batch of backend {self.name!r} {problem}"))
            return None
        tasks: Sequence[ComputeTask] = chosen  # type: ignore[assignment]
        assert self._context is not None
        self._batches += 1
        batch = TaskBatch(self._batches, tasks, self._context)
        held = self._held
        for task in tasks:
            task._unit = batch
            held[task.uid] = task
        if learns:
            batch.learns = True
            batch.spare = self._units >= self._capacity.slots
            batch.predicted = self._batching.predict(tasks)
        batch.submitted_at = time.perf_counter()
        self._units += 1
        log.debug("batch_submitted", backend=self.name, batch=batch.uid, tasks=len(batch))
        return batch

    def _refused(self, batch: TaskBatch, error: Exception) -> None:
        """The engine did not take a batch: its tasks fail, and say why."""
        tasks = [task for task in batch.tasks if task._unit is batch]
        log.warning("submit_failed", backend=self.name, tasks=len(tasks), error=str(error))
        if isinstance(error, SubmitError):
            problem = error
        else:
            problem = SubmitError(f"backend {self.name!r} did not take the batch: {type(error).__name__}: {error}")
            problem.__cause__ = error
        self._apply([Outcome(task.uid, TaskState.FAILED, exception=problem) for task in tasks])

    # -- cancel ----------------------------------------------------------------------------------------------------

    async def cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Stop tasks, and say of each what became of it."""
        results: dict[str, CancelResult] = {}
        waiting: list[Change] = []
        held: list[ComputeTask] = []
        for task in tasks:
            if task.state in FINAL_STATES:
                results[task.uid] = CancelResult.TOO_LATE
            elif task._unit is not None:
                held.append(task)
            else:
                results[task.uid] = CancelResult.NEVER_STARTED
                waiting.append((task, Outcome(task.uid, TaskState.CANCELED, exception=_canceled(task))))
        if waiting:
            self._backlog.forget(len(waiting))
            self._sink(waiting)
        if held:
            results |= await self._cancel_held(held)
        return results

    async def _cancel_held(self, tasks: list[ComputeTask]) -> dict[str, CancelResult]:
        if self._submitting is not None:  # half way into the engine: it can be stopped once it is there
            await asyncio.wait([self._submitting], timeout=self.backend.deadlines.cancel)
        if not self._hooks.can_cancel or self.phase is not Phase.OPEN:
            return {task.uid: _fate(task) for task in tasks}
        deadline = self.backend.deadlines.cancel
        told: Mapping[str, CancelResult] = {}
        try:
            async with asyncio.timeout(deadline):
                told = await _settled(self._hooks.cancel([task for task in tasks if task.state not in FINAL_STATES]))
                stopped = (CancelResult.NEVER_STARTED, CancelResult.STOPPED)
                ending = [task._ended() for task in tasks if told.get(task.uid) in stopped and not task.is_final]
                if ending:
                    await asyncio.wait(ending)
        except Exception as error:  # its tasks keep their real end; the caller is told that they could not be stopped
            log.warning("cancel_failed", backend=self.name, error=repr(error))
        return {task.uid: _fate(task, told.get(task.uid)) for task in tasks}

    # -- events come up ----------------------------------------------------------------------------------------------

    def _apply(self, events: Sequence[Event]) -> None:
        """Apply a list of events, and submit what there is room for now."""
        changes: list[Change] = []
        held = self._held
        unknown = 0
        for event in events:
            if type(event) is Outcome:
                task = held.pop(event.uid, None)
                if task is None:
                    unknown += 1
                    continue
                if event.state is not TaskState.DONE:
                    _complete(event, task, self.name)
                self._leave_unit(task, event)
                changes.append((task, event))
            elif type(event) is Started:
                task = held.get(event.uid)
                if task is None or task.state is not TaskState.QUEUED:
                    unknown += 1
                else:
                    changes.append((task, event))
            elif type(event) is Returned:
                unknown += self._take_back(event.uids)
            elif type(event) is CapacityChanged:
                self._capacity = event.capacity
            elif type(event) is BackendLost:
                self._deliver(changes)
                changes = []
                self._lose(event.error)
            else:
                self._lose(InvalidBackendError(f"backend {self.name!r} reported {event!r}, which is no event"))
        if unknown:
            log.warning("reports_dropped", backend=self.name, count=unknown, reason="not held, or reported before")
        self._deliver(changes)
        self._pump()

    def _deliver(self, changes: list[Change]) -> None:
        if changes:
            self._sink(changes)

    def _leave_unit(self, task: ComputeTask, outcome: Outcome | None) -> None:
        batch: TaskBatch = task._unit
        task._unit = None
        batch.left -= 1
        if batch.learns and outcome is not None and outcome.started_at is not None and outcome.ended_at is not None:
            seconds = outcome.ended_at - outcome.started_at
            batch.work += seconds
            self._batching.observe(task, seconds)
        if not batch.left:
            self._units -= 1
            if batch.learns and batch.work:
                took = time.perf_counter() - batch.submitted_at
                cost = None if batch.spare else took - batch.work
                self._batching.observe_unit(batch.tasks, batch.predicted, batch.work, cost)

    def _take_back(self, uids: Sequence[str]) -> int:
        """Put tasks that never started back at the front. Returns how many were not there to take."""
        tasks = []
        for uid in uids:
            task = self._held.get(uid)
            if task is not None and task.state is TaskState.QUEUED:
                del self._held[uid]
                self._leave_unit(task, None)
                tasks.append(task)
        self._backlog.put_back(tasks)
        return len(uids) - len(tasks)

    def _lose(self, error: Exception) -> None:
        """Give the backend up: everything that it holds, and everything that waits for it, fails."""
        if self.phase is not Phase.OPEN:
            return
        log.error("backend_lost", backend=self.name, error=str(error))
        self.phase = Phase.LOST
        self.error = error
        self._fail_all(error)

    def _fail_all(self, error: Exception) -> None:
        tasks = [*self._held.values(), *self._backlog.drain()]
        self._held.clear()
        self._units = 0
        for task in tasks:
            task._unit = None
        self._deliver([(task, Outcome(task.uid, TaskState.FAILED, exception=error)) for task in tasks])


async def _settled(result: Any) -> Any:
    """Await what a hook returned, where it is to be awaited."""
    return await result if inspect.isawaitable(result) else result


def _canceled(task: ComputeTask) -> TaskCanceledError:
    return TaskCanceledError(f"task {task.uid} was canceled")


def _complete(outcome: Outcome, task: ComputeTask, backend: str) -> None:
    """Mend an outcome that is not DONE: it must be final, and must carry an exception."""
    if outcome.state is TaskState.CANCELED:
        outcome.exception = outcome.exception or _canceled(task)
    elif outcome.state is not TaskState.FAILED:
        outcome.exception = BackendError(f"backend {backend!r} reported {outcome.state!r} as the end of {task.uid}")
        outcome.state = TaskState.FAILED
    elif not isinstance(outcome.exception, BaseException):
        said = f": {outcome.exception}" if outcome.exception else " without saying why"
        outcome.exception = BackendError(f"backend {backend!r} reported that task {task.uid} failed{said}")


def _fate(task: ComputeTask, told: CancelResult | None = None) -> CancelResult:
    """Say what became of a task, by what the backend said and by what it is now."""
    if task.state is TaskState.CANCELED:
        return CancelResult.NEVER_STARTED if told is CancelResult.NEVER_STARTED else CancelResult.STOPPED
    return CancelResult.TOO_LATE if task.is_final else CancelResult.CANNOT_STOP
