"""The only writer of tasks: records their states, their results, and settles their futures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any, Final

import attrs

from rhapsody.errors import SessionClosedError
from rhapsody.log import get_logger
from rhapsody.model.kept import KeptArgument, KeptResult
from rhapsody.model.kinds import FUNCTION
from rhapsody.model.outcome import Outcome, Started
from rhapsody.model.policies import Policies
from rhapsody.model.references import with_values
from rhapsody.model.retry import Attempt
from rhapsody.model.states import TaskState, advance
from rhapsody.model.task import ComputeTask
from rhapsody.model.transition import Accepted, Transition, Transitions
from rhapsody.scheduling.instructions import Change
from rhapsody.sessions.dicts import TaskDicts
from rhapsody.sessions.observed import Observers
from rhapsody.sessions.waiting import Ends

log = get_logger(__name__)
TaskFuture = asyncio.Future[ComputeTask]
_QUEUED: Final = TaskState.QUEUED
_RUNNING: Final = TaskState.RUNNING
_DONE: Final = TaskState.DONE


@attrs.define
class Tally:
    """How many tasks of one backend were accepted, and how many did not succeed."""

    tasks: int = 0
    failed: int = 0
    canceled: int = 0


class Recorder:
    """Records what happens to the tasks of one session, and notifies those who wait and those who observe.

    Args:
        session: its uid.
        observers: of the session.

    Attributes:
        tasks: accepted and not ended, by uid.
        names: uids that users chose, of all tasks ever: a file may carry such a name.
        ends: notifies waiters.
        tallies: what became of the tasks, by backend.
        dicts: by which tasks were described; their results are written into these.
    """

    def __init__(self, session: str, observers: Observers) -> None:
        self._session = session
        self.tasks: dict[str, ComputeTask] = {}
        self.names: set[str] = set()
        self.ends = Ends()
        self.tallies: dict[str, Tally] = {}
        self.dicts = TaskDicts()
        self._observers = observers

    def accept(self, tasks: Sequence[ComputeTask], loop: asyncio.AbstractEventLoop, state: TaskState = _QUEUED) -> None:
        """Record that NEW tasks are accepted.

        Args:
            tasks: as the admission has checked them.
            loop: of the session.
            state: QUEUED or WAITING.
        """
        now, accepted, session = time.time(), self.tasks, self._session
        context = copy_context()
        first = advance(TaskState.NEW, state)  # once for all of them: each is NEW
        for task in tasks:
            task._settler = loop
            task.session = session
            task.context = context
            task.state = first
            task.submitted_at = now
            accepted[task.uid] = task
            if task._named:
                self.names.add(task.uid)
        if tasks and self._observers.want_transitions:
            self._observers.tasks_changed(Accepted(tasks, first, now))

    def queue(self, tasks: Sequence[ComputeTask]) -> None:
        """Record that WAITING tasks wait for room at their backend."""
        now = time.time()
        is_wanted = self._observers.want_transitions
        old = [task.state for task in tasks] if is_wanted else []
        for task in tasks:
            task.state = advance(task.state, _QUEUED)
        if tasks and is_wanted:
            changes = zip(tasks, old, strict=True)
            self._observers.tasks_changed([Transition(task, before, task.state, now) for task, before in changes])

    def set_back(self, task: ComputeTask, outcome: Outcome, backend: str) -> bool:
        """Record that an attempt failed and another will follow, on a backend: the task is WAITING.

        Returns:
            Whether it is so: a task that has ended stays as it is.
        """
        old, policies = task.state, task.policies
        assert policies is not None  # since it has retries
        state = advance(old, TaskState.WAITING)
        if state is old:
            return False
        started_at = outcome.started_at or task.started_at
        ended_at = outcome.ended_at or time.time()
        ran_on = outcome.ran_on or task.ran_on
        policies.past.append(Attempt(task.backend, outcome.exception, ran_on, started_at, ended_at))
        task.state = state
        task.started_at = task.ran_on = None
        task.backend = backend
        if self._observers.want_transitions:
            steps = [Transition(task, old, state, ended_at)]
            if old is _QUEUED and started_at is not None:
                steps = [Transition(task, old, _RUNNING, started_at), Transition(task, _RUNNING, state, ended_at)]
            self._observers.tasks_changed(steps)
        return True

    def record(self, changes: Sequence[Change]) -> None:
        """Record what happened to tasks, in order: the runners' sink."""
        accepted = self.tasks
        ended: list[str] = []
        transitions: list[Any] | None = [] if self._observers.want_transitions else None  # the fields of each
        for task, event in changes:
            old = task.state
            if not apply(task, event):
                continue
            if transitions is not None:
                if old is _QUEUED and type(event) is Outcome and task.started_at is not None:
                    # its start was not worth a report of its own
                    transitions += (task, old, _RUNNING, task.started_at)
                    old = _RUNNING
                at = event.at if isinstance(event, Started) else task.ended_at
                assert at is not None
                transitions += (task, old, task.state, at)
            if type(event) is Outcome:
                del accepted[task.uid]
                ended.append(task.uid)
                if task.state is not _DONE:
                    self._count(task)
        if ended and self.dicts:
            self.dicts.write(changes)
        if ended and self.ends:
            self.ends.notify(ended)
        if transitions:
            self._observers.tasks_changed(Transitions(transitions))

    def tally_of(self, backend: str) -> Tally:
        """Return the tally of a backend."""
        return self.tallies.setdefault(backend, Tally())

    def _count(self, task: ComputeTask) -> None:
        tally = self.tally_of(task.backend or "")
        if task.state is TaskState.CANCELED:
            tally.canceled += 1
        else:
            tally.failed += 1

    def fail_unended(self, session: str) -> None:
        """Record the end of tasks which cannot be stopped and do not end, when their session does."""
        self.record([(task, _unended(task, session)) for task in list(self.tasks.values())])


def apply(task: ComputeTask, event: Started | Outcome) -> bool:
    """Apply a report to a task. Returns whether it changed the task's state: one that comes too late does not."""
    old = task.state
    new = event.state if isinstance(event, Outcome) else _RUNNING
    state = advance(old, new)
    if state is old:
        log.debug("report_dropped", task=task.uid, state=old.value, reported=new.value)
        return False
    task.state = state
    if type(event) is Outcome:
        _record(task, event)
        _resolve(task)
    else:
        assert type(event) is Started
        task.started_at = event.at
        task.ran_on = event.ran_on
        task.native_id = event.native_id
        task.logs = event.logs
        task.attempt = _attempt_of(task) or task.attempt + 1
    return True


def has_chosen_uid(task: ComputeTask) -> bool:
    """Whether the user chose the uid of the task."""
    return task._named


def future_of(task: ComputeTask, loop: asyncio.AbstractEventLoop) -> TaskFuture:
    """Return the future of an accepted task; a settled one where the task has ended."""
    if not task.is_final:
        return task._shared()
    future = loop.create_future()
    _settle(future, task)
    return future


def _unended(task: ComputeTask, session: str) -> Outcome:
    if task.state is _RUNNING:
        text = f"task {task.uid} still runs and cannot be stopped; session {session} closed without its end"
    else:
        text = f"task {task.uid} had not ended when session {session} closed"
    return Outcome(task.uid, TaskState.FAILED, exception=SessionClosedError(text))


def _record(task: ComputeTask, outcome: Outcome) -> None:
    """Write how a task ended into it."""
    task.return_value = outcome.return_value
    if outcome.exception is not None:
        task.exception = outcome.exception
        task._traceback = outcome.exception.__traceback__
    task.ended_at = outcome.ended_at or time.time()
    if outcome.started_at is not None:
        task.started_at = outcome.started_at
        task.attempt = (
            _attempt_of(task) or outcome.attempt or task.attempt or 1
        )  # its start may not have been reported by itself
    if outcome.ran_on is not None:
        task.ran_on = outcome.ran_on
    if outcome.native_id is not None:
        task.native_id = outcome.native_id
    if outcome.logs is not None:
        task.logs = outcome.logs
    if task.kind is not FUNCTION or task.capture_stdio:
        task.stdout = outcome.stdout
        task.stderr = outcome.stderr
        task.exit_code = outcome.exit_code
        task.stdout_path = outcome.stdout_path
        task.stderr_path = outcome.stderr_path
    elif outcome.exit_code is not None:  # the function called sys.exit
        task.exit_code = outcome.exit_code


def _attempt_of(task: ComputeTask) -> int:
    """Return the number of the attempt that runs, of a task that was tried again; 0 of all others."""
    return len(task.policies.past) + 1 if task.policies is not None and task.policies.past else 0


def fill_in(task: ComputeTask, value_of: Callable[[ComputeTask], Any]) -> None:
    """Put values in place of the tasks in a task's arguments.

    What it waited for is forgotten, so that no task keeps all that went before it.

    Raises:
        InvalidTaskError: an argument that holds a task cannot be copied.
    """
    taken: list[KeptResult] = []

    def argument_of(parent: ComputeTask) -> Any:
        value = value_of(parent)
        if type(value) is not KeptResult:
            return value
        taken.append(value)
        return KeptArgument(value)

    for name in ("args", "kwargs", "arguments"):
        if len(given := getattr(task, name)):
            setattr(task, name, with_values(given, argument_of))
    if taken:
        task.policies = task.policies or Policies()
        task.policies.takes = tuple(taken)
    if task.policies is not None and (task.policies.after or task.policies.after_any):
        task.policies.after = task.policies.after_any = ()


def _resolve(task: ComputeTask) -> None:
    """Settle the task's future, if somebody asked for it; the task lets go of it, so that neither keeps the other."""
    future, task._settler = task._settler, None
    if isinstance(future, asyncio.Future) and not future.done():  # done: whoever waited on it gave up
        _settle(future, task)


def _settle(future: TaskFuture, task: ComputeTask) -> None:
    """Resolve a future with how its task has ended."""
    if task.state is TaskState.DONE:
        future.set_result(task)
    else:
        future.set_exception(task._error())
        future.exception()  # retrieved: the task holds it, and asyncio need not log that nobody asked the future
