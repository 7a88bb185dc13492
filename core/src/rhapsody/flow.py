"""The tasks of one attached backend: how they go down to its engine, and how what it reports comes up.

Tasks wait in the backlog, on our side, until there is room at the engine; a batch is formed by `rhapsody_batch` and
handed over by `rhapsody_submit`; events end or return its tasks. Nothing that was accepted is lost: a task is in the
backlog, or held by a batch, or has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from .batch import TaskBatch
from .batching import AdaptiveBatching, Backlog
from .capabilities import Deadlines
from .context import BackendContext
from .errors import BackendError, InvalidBackendError, SubmitError, TaskCanceledError, WorkerLostError, describe
from .events import BackendLost, CancelResult, Capacity, CapacityChanged, Event, Outcome, Returned, Started
from .hooks import BackendCaller
from .log import get_logger
from .states import FINAL_STATES, TaskState
from .task import ComputeTask

log = get_logger(__name__)

Change = tuple[ComputeTask, Started | Outcome]
Sink = Callable[[Sequence[Change]], None]

_STOPPING: Final = (CancelResult.NEVER_STARTED, CancelResult.STOPPED)
_TOO_LATE: Final = CancelResult.TOO_LATE
_LAST_REPORTS: Final = 1.0  # seconds that the report of an end of which a backend has spoken may take
_DEAF: Final = 10.0  # seconds that a hook has to end once it was canceled; one that does not listen is left behind


class TaskFlow:
    """What waits for one backend, what its engine holds, and the way between.

    Args:
        name: of the backend.
        hooks: of the backend.
        batching: core's default `rhapsody_batch`, which learns from what ends.
        deadlines: for hooks that are awaited.
        sink: called with what happened to tasks, in order.
        on_lost: called when the engine is gone, or the backend broke its contract.
    """

    def __init__(
        self,
        name: str,
        hooks: BackendCaller,
        batching: AdaptiveBatching,
        deadlines: Deadlines,
        *,
        sink: Sink,
        on_lost: Callable[[Exception], None],
    ) -> None:
        self.name = name
        self.is_open = False
        self._hooks = hooks
        self._batching = batching
        self._deadlines = deadlines
        self._sink = sink
        self._on_lost = on_lost
        self._context: BackendContext | None = None
        self._capacity = Capacity(slots=1, units=1)
        self._backlog = Backlog()
        self._held: dict[str, ComputeTask] = {}  # tasks in the engine's hands
        self._units = 0  # batches in the engine's hands
        self._batches = 0  # batches ever
        self._canceling: set[str] = set()  # uids that the engine was asked to stop
        self._gone: Exception | None = None  # why the engine is lost
        self._pumping = False
        self._submitting: asyncio.Task[None] | None = None

    def open(self, context: BackendContext) -> None:
        """The engine is ready: let tasks go down."""
        self._context = context
        self._capacity = context.capacity
        self.is_open = True
        self._pump()

    async def stop(self) -> None:
        """Let nothing more go down; what the engine holds may still end."""
        self.is_open = False
        if self._submitting is not None:
            self._submitting.cancel()
            await asyncio.wait([self._submitting], timeout=_DEAF)

    def fail_all(self, error: Exception) -> None:
        """Leave no task behind: whatever has no outcome by now fails with this error."""
        self.is_open = False
        tasks = [*self._held.values(), *self._backlog.drain()]
        self._held.clear()
        self._units = 0
        for task in tasks:
            task._unit = None
        self._deliver([(task, Outcome(task.uid, TaskState.FAILED, exception=error)) for task in tasks])

    def lose(self, error: Exception) -> None:
        """Give the backend up: everything that it holds, and everything that waits for it, fails."""
        if self.is_open:
            self.is_open = False
            self._gone = error
            self._on_lost(error)
            self.fail_all(error)

    # -- tasks go down ---------------------------------------------------------------------------------------------

    def enqueue(self, tasks: Sequence[ComputeTask]) -> None:
        """Take tasks that the session has accepted."""
        self._backlog.add(tasks)
        if self._gone is not None:
            self.fail_all(self._gone)
        self._pump()

    def _pump(self) -> None:
        """Submit units while tasks wait and there is room; one submission at a time."""
        if self._pumping or not self.is_open:
            return
        self._pumping = True
        try:
            while self.is_open and len(self._backlog) and self._has_room():
                batch = self._next_batch()
                if batch is None:
                    return
                try:
                    pending = self._hooks.submit(batch)
                except Exception as error:
                    self._refused(batch, error)
                    continue
                if pending is not None:
                    self._submitting = asyncio.create_task(
                        self._finish_submit(batch, pending), name=f"rhapsody submit {self.name}"
                    )
                    return
        finally:
            if self._submitting is None:
                self._pumping = False

    async def _finish_submit(self, batch: TaskBatch, pending: Awaitable[None]) -> None:
        """Await an asynchronous submission, then go on with the next."""
        deadline = self._deadlines.submit
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
        tasks: Sequence[ComputeTask] = chosen if isinstance(chosen, Sequence) else ()
        if problem is None and not len(tasks) == len(taken) > 0:
            problem = "must return the tasks that it took off the backlog, at least one"
        learns = self._batching.chose
        if problem is None and not learns and tasks != taken and {*map(id, taken)} != {*map(id, tasks)}:
            problem = "returned other tasks than it took off the backlog"
        if problem is not None:
            backlog.put_back(taken)
            self.lose(InvalidBackendError(f"rhapsody_batch of backend {self.name!r} {problem}"))
            return None
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
        self.apply([Outcome(task.uid, TaskState.FAILED, exception=problem) for task in tasks])

    # -- cancel ----------------------------------------------------------------------------------------------------

    async def cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Stop tasks, and say of each what became of it."""
        results: dict[str, CancelResult] = {}
        waiting: list[Change] = []
        held: list[ComputeTask] = []
        for task in dict.fromkeys(tasks):  # each once, whoever named it twice
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
            await asyncio.wait([self._submitting], timeout=self._deadlines.cancel)
        if not self._hooks.can_cancel or not self.is_open:
            return {task.uid: _fate(task) for task in tasks}
        told: Mapping[str, CancelResult] = {}
        uids = {task.uid for task in tasks if not task.is_final}
        self._canceling |= uids  # until they end: one that comes back before that is not run again
        try:
            async with asyncio.timeout(self._deadlines.cancel):
                said = await self._hooks.cancel([task for task in tasks if not task.is_final])
                if not isinstance(said, Mapping):
                    raise InvalidBackendError(f"rhapsody_cancel of backend {self.name!r} returned {describe(said)}")
                told = said
                ending = [task._ended() for task in tasks if told.get(task.uid) in _STOPPING and not task.is_final]
                if ending:
                    await asyncio.wait(ending)
                ended = [task._ended() for task in tasks if told.get(task.uid) is _TOO_LATE and not task.is_final]
                if ended:  # by what the backend says; the report is on its way
                    await asyncio.wait(ended, timeout=_LAST_REPORTS)
        except Exception as error:  # its tasks keep their real end; the caller is told that they could not be stopped
            log.warning("cancel_failed", backend=self.name, error=repr(error))
        return {task.uid: _fate(task, told.get(task.uid)) for task in tasks}

    # -- events come up ----------------------------------------------------------------------------------------------

    def apply(self, events: Sequence[Event]) -> None:
        """Apply a list of events, and submit what there is room for now."""
        changes: list[Change] = []
        held, done = self._held, TaskState.DONE
        unknown = 0
        for event in events:
            if type(event) is Outcome:
                task = held.pop(event.uid, None)
                if task is None:
                    unknown += 1
                    continue
                if self._canceling:
                    self._canceling.discard(event.uid)
                if event.state is not done:
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
                self._deliver(changes)  # first: one of them may tell that a task had started
                changes = []
                unknown += self._take_back(event.uids, changes)
            elif type(event) is CapacityChanged:
                self._capacity = event.capacity
            elif type(event) is BackendLost:
                self._deliver(changes)
                changes = []
                self.lose(event.error)
            else:
                self.lose(InvalidBackendError(f"backend {self.name!r} reported {event!r}, which is no event"))
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
            if batch.learns and batch.work and not batch.spare:
                took = time.perf_counter() - batch.submitted_at
                self._batching.observe_unit(len(batch), took - batch.work)

    def _take_back(self, uids: Sequence[str], changes: list[Change]) -> int:
        """Put tasks that never started back at the front. Returns how many were not there to take."""
        tasks: list[ComputeTask] = []
        unknown = 0
        for uid in uids:
            task = self._held.pop(uid, None)
            if task is None:
                unknown += 1
                continue
            self._leave_unit(task, None)
            if task.state is not TaskState.QUEUED:  # it may have had effects: it is not run twice
                text = f"backend {self.name!r} gave task {uid} back after it had started"
                changes.append((task, Outcome(uid, TaskState.FAILED, exception=WorkerLostError(text))))
            elif uid in self._canceling:
                changes.append((task, Outcome(uid, TaskState.CANCELED, exception=_canceled(task))))
            else:
                tasks.append(task)
                continue
            self._canceling.discard(uid)
        self._backlog.put_back(tasks)
        return unknown


async def bounded(result: Awaitable[None] | None, seconds: float) -> None:
    """Await what a hook returned, but no longer than this: also where the hook does not listen to being canceled.

    Raises:
        Overdue: it takes longer.
    """
    if result is None:
        return
    hook = asyncio.ensure_future(result)
    hook.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, also if it ends later
    try:
        await asyncio.wait([hook], timeout=seconds)
    except asyncio.CancelledError:
        hook.cancel()
        await asyncio.wait([hook], timeout=_DEAF)
        raise
    if not hook.done():
        hook.cancel()
        await asyncio.wait([hook], timeout=_DEAF)
        raise Overdue
    hook.result()


class Overdue(Exception):
    """A hook took longer than its deadline."""


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
        never = told is not CancelResult.STOPPED and task.started_at is None
        return CancelResult.NEVER_STARTED if never else CancelResult.STOPPED
    return CancelResult.TOO_LATE if task.is_final or told is CancelResult.TOO_LATE else CancelResult.CANNOT_STOP
