"""`Telemetry`: the observer that records what happens in a session as telemetry."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import attrs

from rhapsody.errors import SessionError, describe
from rhapsody.hookspecs import ObservedSession, hookimpl
from rhapsody.model.kinds import FUNCTION
from rhapsody.model.states import FINAL_STATES, TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.model.transition import Accepted, Transition, changes_of
from rhapsody.observers.content import name_of
from rhapsody.protocol.batch import TaskBatch
from rhapsody.protocol.trace import TRACE
from rhapsody.sessions.graph import needs_of

try:
    from rhapsody.observers.telemetry import events
    from rhapsody.observers.telemetry.manager import TelemetryManager
    from rhapsody.observers.telemetry.spans import Done
except ImportError as error:
    raise SessionError(str(error)) from error

from opentelemetry import trace

_NEW: Final = TaskState.NEW
_QUEUED: Final = TaskState.QUEUED
_RUNNING: Final = TaskState.RUNNING
_DONE: Final = TaskState.DONE
_FAILED: Final = TaskState.FAILED
_CANCELED: Final = TaskState.CANCELED
Attempts = Sequence[tuple[int, float, str, str]]  # number, start, worker, kind of error or nothing


@attrs.define(eq=False)
class _Batch:
    """A batch whose tasks have not all ended."""

    uid: str
    backend: str
    at: float
    tasks: int
    left: int


class Telemetry:
    """Counts what happens as it does, so that nothing piles up; subscribers are notified later, on the session's loop.

    Args:
        session: to be observed.
        resource_poll_interval: seconds between two readings of this machine's use.
        options: as `TelemetryManager` takes them.
    """

    def __init__(self, session: ObservedSession, resource_poll_interval: float, **options: Any) -> None:
        self.manager = TelemetryManager(session.uid, **options)
        self._session = session
        for name in session.backends[:1]:  # they share this machine
            self.manager.attach_backend(None, backend_name=name, interval=resource_poll_interval)
        self._parents: dict[str, trace.SpanContext] = {}  # by uid: the span in which a task was submitted
        self._links: dict[str, list[str]] = {}  # the tasks that a task waits for
        self._batches: dict[str, _Batch] = {}  # by the uid of a task
        self._last: tuple[Any, str] = None, ""  # a function and its name

    @hookimpl
    def rhapsody_tasks_submitted(self) -> None:
        """Give the tasks the trace of the session, which they keep with the context of their submit."""
        TRACE.set((self._session.uid, self.manager.spans.trace))

    @hookimpl
    def rhapsody_tasks_changed(self, transitions: Sequence[Transition]) -> None:
        """Count the changes, and have the subscribers notified."""
        if isinstance(transitions, Accepted):
            here = trace.get_current_span().get_span_context()
            if here.is_valid:
                self._parents |= dict.fromkeys((task.uid for task in transitions.tasks), here)
            if transitions.new is TaskState.WAITING:
                without: set[int] = set()
                for task in transitions.tasks:
                    if (needs := needs_of(task, without)) is not None:
                        self._links[task.uid] = [parent.uid for parent in (*needs.done, *needs.ended)]
        self._count(transitions)

    @hookimpl
    def rhapsody_batch_submitted(self, backend: str, batch: TaskBatch) -> None:
        """Note which tasks are in a batch."""
        at = time.time()
        uid, size = f"batch.{backend}.{batch.uid}", len(batch.tasks)
        begun = _Batch(uid, backend, at, size, size)
        for task in batch.tasks:
            if task.uid in self._batches:  # an earlier one gave it back
                self._leave_batch(task.uid, at)
            self._batches[task.uid] = begun

    @hookimpl
    def rhapsody_session_closed(self) -> None:
        """Record the end, and export what is left."""
        for export in self.manager.finish():
            export()

    def _count(self, transitions: Sequence[Transition]) -> None:
        measures, listens = self.manager.measures, self.manager.listens
        submitted, started, running = measures.counts["submitted"], measures.counts["started"], measures.running
        key = "", ""
        for task, old, new, at in changes_of(transitions):
            if task.backend is not key[0]:
                key = task.backend or "", ""
            if old is _NEW:
                submitted[key] += 1
            elif old is _RUNNING:
                running[key] -= 1
            if new is _RUNNING:
                started[key] += 1
                running[key] += 1
            elif new is _DONE or new is _FAILED or new is _CANCELED:
                self._end(task, new, old, at)
            elif old is _RUNNING:  # it is tried again
                self._leave_batch(task.uid, at)
            if listens:
                self._publish(task, old, new, at)

    def _end(self, task: ComputeTask, new: TaskState, old: TaskState, at: float) -> None:
        uid, backend, error = task.uid, task.backend or "", task.exception
        status = "completed" if new is _DONE else "failed" if new is _FAILED else "canceled"
        started = task.started_at if old is _RUNNING else None
        kind = _kind_of(error) if new is _FAILED else ""
        self.manager.measures.ended(status, backend, None if started is None else max(0.0, at - started), kind)
        attempts: Attempts = ()
        ran_on = None
        if task.policies is not None and task.policies.past:
            attempts = [
                (number, attempt.started_at or at, attempt.ran_on or "", _kind_of(attempt.error))
                for number, attempt in enumerate(task.attempts, 1)
            ]
        elif started is not None:
            ran_on = task.ran_on or ""
        links = self._links.pop(uid, ()) if self._links else ()
        batch = self._leave_batch(uid, at)
        parent = self._parents.pop(uid, None) if self._parents else None
        text = "" if error is None else describe(error)
        self.manager.spans.add(
            _task_span, uid, self._name_of(task), backend, task.submitted_at, at, status, kind, text, task.exit_code,
            started, ran_on, attempts, parent, links, batch,
        )  # fmt: skip

    def _leave_batch(self, uid: str, at: float) -> str:
        batch = self._batches.pop(uid, None)
        if batch is None:
            return ""
        batch.left -= 1
        if not batch.left:
            self.manager.spans.add(_batch_span, batch.uid, batch.backend, batch.at, at, batch.tasks)
        return batch.uid

    def _name_of(self, task: ComputeTask) -> str:
        if task.kind is not FUNCTION:
            return str(task.executable)
        if task.function is not self._last[0]:
            self._last = task.function, name_of(task.function)
        return self._last[1]

    def _publish(self, task: ComputeTask, old: TaskState, new: TaskState, at: float) -> None:
        described = {"executable": self._name_of(task), "task_type": "ComputeTask", "kind": task.kind.name}
        who: dict[str, Any] = {"session_id": self._session.uid, "backend": task.backend or "", "task_id": task.uid}
        what: dict[str, Any] = {**who, "event_time": at, "attributes": described}

        def publish(event: events.BaseEvent) -> None:
            self.manager.push(self.manager.publish, event)

        if old is _NEW:
            publish(events.TaskCreated(**what))
            publish(events.TaskSubmitted(**what))
        if new is _QUEUED:
            publish(events.TaskQueued(**what))
        elif new is _RUNNING:
            publish(events.TaskStarted(**what, node_id=task.ran_on))
        elif new in FINAL_STATES:
            what["node_id"] = task.ran_on
            what["duration_seconds"] = max(0.0, at - (task.started_at or at))
            if new is _DONE:
                publish(events.TaskCompleted(**what))
            elif new is _FAILED:
                publish(events.TaskFailed(**what, error_type=_kind_of(task.exception)))
            else:
                publish(events.TaskCanceled(**what))


def _task_span(
    uid: str, name: str, backend: str, submitted: float, ended: float, status: str, kind: str, text: str,
    exit_code: int | None, started: float | None, ran_on: str | None, attempts: Attempts,
    parent: trace.SpanContext | None, links: Sequence[str], batch: str,
) -> Done:  # fmt: skip
    attributes: dict[str, Any] = {"task_id": uid, "executable": name, "task_type": "ComputeTask", "backend": backend}
    attributes["status"] = status
    if kind:
        attributes["error_type"] = kind
    if exit_code is not None:
        attributes["exit_code"] = exit_code
    if ran_on is not None and started is not None:
        attempts = ((1, started, ran_on, kind),)
    if attempts:
        attributes |= {"worker": attempts[-1][2], "duration_seconds": max(0.0, ended - attempts[-1][1])}
    steps: list[tuple[str, float, dict[str, Any]]] = []
    for number, at, worker, error in attempts:
        steps.append(("attempt", at, {"attempt": number, "worker": worker} | ({"error_type": error} if error else {})))
    before = (*links, batch) if batch else links
    return Done("task", uid, submitted, ended, status, text, attributes, parent, before, steps)


def _batch_span(uid: str, backend: str, started: float, ended: float, tasks: int) -> Done:
    return Done("batch", uid, started, ended, attributes={"batch": uid, "backend": backend, "tasks": tasks})


def _kind_of(error: BaseException | None) -> str:
    return "" if error is None else type(error).__qualname__
