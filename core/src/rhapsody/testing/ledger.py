"""Watches what a backend reports, event by event, against what it was handed."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rhapsody.errors import RhapsodyError
from rhapsody.hookspecs import hookimpl
from rhapsody.model.outcome import Outcome, Returned, Started
from rhapsody.model.states import FINAL_STATES, TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.protocol.batch import TaskBatch
from rhapsody.seam.capacity import CapacityChanged
from rhapsody.seam.channel import BackendLost, Event, EventChannel

if TYPE_CHECKING:
    from rhapsody.seam.context import BackendContext

__tracebackhide__ = True  # frames of the suite

_SHOWN: Final = 10  # faults that are listed one by one


class Ledger:
    """What became of every task that a backend was handed, and each report that breaks the contract.

    Core drops a report that makes no sense, so a user never sees it; an author must.

    Attributes:
        held: by uid, the state of the tasks that the backend holds.
        ended: by uid, how tasks ended.
        starts: how many starts were reported.
        most_held: the most tasks that the backend held at once.
    """

    def __init__(self) -> None:
        self.held: dict[str, TaskState] = {}
        self.ended: dict[str, TaskState] = {}
        self.starts = 0
        self.most_held = 0
        self._faults: list[str] = []
        self._count = 0

    def handed(self, batch: TaskBatch) -> None:
        """The backend is being handed a batch."""
        for task in batch.tasks:
            self.ended.pop(task.uid, None)
            self.held[task.uid] = TaskState.QUEUED
        self.most_held = max(self.most_held, len(self.held))

    def refused(self, batch: TaskBatch) -> None:
        """The backend did not take it."""
        for task in batch.tasks:
            self.held.pop(task.uid, None)

    def reported(self, events: Sequence[Event]) -> None:
        """The backend reported events."""
        for event in events:
            if isinstance(event, Outcome):
                self._outcome(event)
            elif isinstance(event, Started):
                self._started(event)
            elif isinstance(event, Returned):
                self._returned(event)
            elif isinstance(event, BackendLost):
                self._fault(f"BackendLost was reported: {event.error}")
                self.held.clear()
            elif not isinstance(event, CapacityChanged):
                self._fault(f"{event!r} was reported, which is no event of rhapsody.plugin")

    def _started(self, event: Started) -> None:
        state = self.held.get(event.uid)
        if state is TaskState.QUEUED:
            self.held[event.uid] = TaskState.RUNNING
            self.starts += 1
        elif state is TaskState.RUNNING:
            self._fault(f"Started was reported twice for task {event.uid}; report it once, or not at all")
        else:
            self._fault(
                f"Started was reported for task {event.uid}, {self._end_of(event.uid)}; put Started into the channel "
                f"before the task's Outcome, from the same thread"
            )

    def _outcome(self, event: Outcome) -> None:
        if event.uid not in self.held:
            self._fault(
                f"Outcome({event.state}) was reported for task {event.uid}, {self._end_of(event.uid)}; report exactly "
                f"one Outcome for each task of a batch"
            )
            return
        if event.state not in FINAL_STATES:
            self._fault(
                f"Outcome of task {event.uid} has the state {event.state!r}; it must be DONE, FAILED or CANCELED"
            )
        elif event.state is TaskState.FAILED and not isinstance(event.exception, BaseException):
            self._fault(f"Outcome(FAILED) of task {event.uid} has no exception; say why it failed")
        elif event.state is TaskState.DONE and event.exception is not None:
            self._fault(f"Outcome(DONE) of task {event.uid} has the exception {event.exception!r}; is it FAILED?")
        del self.held[event.uid]
        self.ended[event.uid] = event.state

    def _returned(self, event: Returned) -> None:
        for uid in event.uids:
            state = self.held.pop(uid, None)
            if state is None:
                self._fault(f"Returned was reported for task {uid}, {self._end_of(uid)}")
            elif state is TaskState.RUNNING:
                self._fault(f"Returned was reported for task {uid}, which had started; it would run twice")

    def _end_of(self, uid: str) -> str:
        if uid in self.ended:
            return f"which had ended {self.ended[uid]} before"
        return "which the backend does not hold"

    def _fault(self, text: str) -> None:
        self._count += 1
        if len(self._faults) < _SHOWN:
            self._faults.append(text)

    def faults(self) -> str:
        """Return what was wrong since the last call, as text; empty if nothing was."""
        count, faults = self._count, self._faults
        self._count, self._faults = 0, []
        if count > len(faults):
            faults.append(f"and {count - len(faults)} more")
        return "\n".join(faults)

    def missing(self, tasks: Iterable[ComputeTask]) -> str:
        """Say of tasks that have not ended where they are."""
        late = [task for task in tasks if not task.is_final]
        kept = [task.uid for task in late if task.uid in self.held]
        text = f"{len(late)} tasks have not ended"
        if kept:
            text += (
                f"; the backend holds {len(kept)} of them and has reported no Outcome ({', '.join(kept[:5])}"
                f"{', ...' if len(kept) > 5 else ''}). Every task of a batch needs exactly one Outcome, also where its "
                f"worker or batch is lost"
            )
        if len(kept) < len(late):
            text += (
                f"; {len(late) - len(kept)} wait in core, for the backend has no room: it took {self.most_held} at a "
                f"time. Room comes back with an Outcome for every task of a batch, and with set_capacity"
            )
        return text


class Spy:
    """Writes what passes through a backend's hooks into a ledger; a plugin beside the backend, of wrappers only.

    Attributes:
        ledger: of this one life of the backend.
        context: what `rhapsody_init` was given.
        capacity_at_init: whether the backend had said its capacity when `rhapsody_init` returned.
        answers: what `rhapsody_cancel` answered last, by uid.
    """

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.context: BackendContext | None = None
        self.capacity_at_init = False
        self.answers: dict[str, Any] = {}

    @hookimpl(wrapper=True)
    def rhapsody_init(self, context: BackendContext) -> Generator[None, Any, Any]:
        """See whether the capacity is set by the time that it returns."""
        self.context = context
        self._listen(context.events)
        before = context.capacity

        def note_capacity() -> None:
            self.capacity_at_init = context.capacity is not before

        result = yield
        if inspect.isawaitable(result):
            return _then(result, note_capacity)
        note_capacity()
        return result

    def _listen(self, channel: EventChannel) -> None:
        """Note what core takes out of the channel."""
        take = channel.take

        def noted() -> list[Event]:
            taken = take()
            self.ledger.reported(taken)
            return taken

        channel.take = noted  # type: ignore[method-assign]  # of this one channel

    @hookimpl(wrapper=True)
    def rhapsody_submit(self, batch: TaskBatch) -> Generator[None, Any, Any]:
        """Note what the backend is handed."""
        self.ledger.handed(batch)
        try:
            result = yield
        except BaseException:
            self.ledger.refused(batch)
            raise
        return self._finish(result, batch) if inspect.isawaitable(result) else result

    @hookimpl(wrapper=True)
    def rhapsody_cancel(self) -> Generator[None, Any, Any]:
        """Note what the backend answers, before core weighs it against what became of the task."""
        result = yield
        return self._noted(result) if inspect.isawaitable(result) else self._note(result)

    async def _noted(self, pending: Awaitable[Any]) -> Any:
        return self._note(await pending)

    def _note(self, answer: Any) -> Any:
        if isinstance(answer, Mapping):
            self.answers.update(answer)
        return answer

    async def _finish(self, pending: Awaitable[Any], batch: TaskBatch) -> None:
        try:
            await pending
        except BaseException:
            self.ledger.refused(batch)
            raise


async def _then(pending: Awaitable[Any], note_capacity: Any) -> Any:
    result = await pending
    note_capacity()
    return result


class ConformanceError(AssertionError, RhapsodyError):
    """The backend does not keep the contract."""
