"""What happened in a session since the last group was written, noted on the session's loop in the form of rows."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final

import attrs

from rhapsody.model.kinds import FUNCTION
from rhapsody.model.retry import Attempt
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.model.transition import Accepted, Transition, changes_of
from rhapsody.observers.content import ATOMS, Call, Contents
from rhapsody.observers.journal.recall import RECALLED
from rhapsody.observers.journal.results import Kept, keep
from rhapsody.observers.journal.schema import COLUMNS

_QUEUED: Final = TaskState.QUEUED
_RUNNING: Final = TaskState.RUNNING
_DONE: Final = TaskState.DONE
_FAILED: Final = TaskState.FAILED
_CANCELED: Final = TaskState.CANCELED
_KNOWN_CALLS: Final = 10_000  # calls whose numbers are remembered


@attrs.define(eq=False)
class Group:
    """What is written together.

    Attributes:
        rows: by table, the values of its rows one after the other: a list of texts and numbers is nothing that the
            garbage collector has to visit.
        queued: by uid, tasks that only wait.
        states: by uid, the others that have not ended, the state of each, and since when it has it.
        returned: number of a task and its result, one after the other; results that nothing can change.
        ended: number of a task, the task, and what was kept of its end.
    """

    rows: dict[str, list[Any]] = attrs.field(factory=lambda: {table: [] for table in COLUMNS})
    queued: dict[str, ComputeTask] = attrs.field(factory=dict)
    states: dict[str, tuple[ComputeTask, TaskState, float]] = attrs.field(factory=dict)
    returned: list[Any] = attrs.field(factory=list)
    ended: list[tuple[int, ComputeTask, Kept | TracebackType]] = attrs.field(factory=list)

    def __len__(self) -> int:
        """Return about how many tasks it has."""
        return len(self.rows["tasks"]) // COLUMNS["tasks"] + len(self.queued) + len(self.states)


class Notes:
    """Knows the tasks that have not ended, and notes what happens to them.

    Args:
        contents: reads what tasks run.
        backend: the one of tasks that name none.
        first: by table, a number that no row of it has.
    """

    def __init__(self, contents: Contents, backend: str, first: Mapping[str, int]) -> None:
        self.group = Group()
        self.recalled: set[str] = set()  # tasks that were not run, until they end
        self._call_of = contents.call_of
        self._backend = backend
        self._lock = threading.Lock()
        self._next_task, self._next_call, self._next_worker = first["tasks"], first["calls"], first["workers"]
        self._numbers: dict[str, int] = {}  # of the tasks that have not ended
        self._call_numbers: dict[str, int] = {}  # of their calls
        self._unusual: set[str] = set()  # those whose transitions have rows of their own
        self.workers: dict[str, int] = {}
        self._calls: dict[tuple[Any, ...], int] = {}

    def take(self) -> tuple[Group, dict[str, tuple[int, int]]]:
        """Return what was noted since the last call, and the numbers of its tasks that live, and of their calls."""
        with self._lock:
            group = self.group
            for task, _, _ in group.states.values():
                self._worker(task.ran_on)
            self.group = Group()
            numbers, calls = self._numbers, self._call_numbers
            return group, {uid: (numbers[uid], calls[uid]) for uid in (*group.queued, *group.states)}

    def add(self, transitions: Sequence[Transition]) -> None:
        """Note changes."""
        with self._lock:
            if isinstance(transitions, Accepted):
                self._accept(transitions)
            else:
                self._change(transitions)

    def _accept(self, accepted: Accepted) -> None:
        group, numbers, calls, call_of = self.group, self._numbers, self._call_numbers, self._call_of
        queued = group.queued
        number, known, call_number, backend = self._next_task, None, 0, None
        for task in accepted.tasks:
            uid, call = task.uid, call_of(task)
            if task.resources is not None or task.tag is not None:
                call_number, known = self._number_of(call, task), None
            elif call is not known or task.backend is not backend:
                call_number, known, backend = self._number_of(call, task), call, task.backend
            numbers[uid] = number
            calls[uid] = call_number
            queued[uid] = task
            number += 1
        if accepted.new is not _QUEUED:
            for task in accepted.tasks:
                del queued[task.uid]
                group.states[task.uid] = task, accepted.new, accepted.at
                self._unusual.add(task.uid)
                group.rows["transitions"] += (numbers[task.uid], accepted.new.value, accepted.at)
        self._next_task = number

    def _change(self, transitions: Sequence[Transition]) -> None:
        group, unusual, workers = self.group, self._unusual, self.workers
        queued, states, tasks = group.queued, group.states, group.rows["tasks"]
        number_of, call_of = self._numbers.pop, self._call_numbers.pop
        for task, old, new, at in changes_of(transitions):
            uid = task.uid
            if new is _DONE or new is _FAILED or new is _CANCELED:
                queued.pop(uid, None)
                if states:
                    states.pop(uid, None)
                number, call = number_of(uid), call_of(uid)
                worker = workers.get(task.ran_on or "") or self._worker(task.ran_on)
                state = "DONE" if new is _DONE else new.value
                tasks += (number, uid, call, state, task.submitted_at, task.started_at, at, worker, task.attempt)
                if new is not _DONE or task.return_value is not None or self.recalled or task.kind is not FUNCTION:
                    self._end(number, task)
                if unusual and uid in unusual:
                    unusual.discard(uid)
                    group.rows["transitions"] += (number, new.value, at)
                if task.policies is not None and task.policies.past and task.started_at is not None:
                    self._attempt(number, task, task.attempts[-1])
            elif new is _RUNNING and old is _QUEUED:
                queued.pop(uid, None)
                states[uid] = task, new, at
                if unusual and uid in unusual:
                    group.rows["transitions"] += (self._numbers[uid], new.value, at)
            else:
                self._unusually(task, old, new, at)

    def _unusually(self, task: ComputeTask, old: TaskState, new: TaskState, at: float) -> None:
        """Give a task's transitions rows of their own from here on, and those that its columns held until now too."""
        uid, group = task.uid, self.group
        rows, number = group.rows["transitions"], self._numbers[uid]
        group.queued.pop(uid, None)
        group.states[uid] = task, new, at
        attempt = task.policies.past[-1] if task.policies is not None and task.policies.past else None
        if uid not in self._unusual:
            self._unusual.add(uid)
            rows += (number, _QUEUED.value, task.submitted_at)
            if old is _RUNNING:
                began = attempt.started_at if attempt is not None else None
                rows += (number, _RUNNING.value, min(began or at, at))
        rows += (number, new.value, at)
        if old is _RUNNING and attempt is not None:
            self._attempt(number, task, attempt)

    def _attempt(self, number: int, task: ComputeTask, attempt: Attempt) -> None:
        assert task.policies is not None
        past = task.policies.past
        count = len(past) + (attempt is not past[-1])
        error = attempt.error
        kind = None if error is None else type(error).__qualname__
        worker = self._worker(attempt.ran_on)
        row = number, count, attempt.backend, worker, attempt.started_at, attempt.ended_at, kind
        self.group.rows["attempts"] += row

    def _end(self, number: int, task: ComputeTask) -> None:
        if self.recalled and task.uid in self.recalled:
            self.recalled.discard(task.uid)
            self.group.ended.append((number, task, RECALLED))
        elif task.exception is not None or task.kind is not FUNCTION:
            self.group.ended.append((number, task, keep(task)))
        elif task.return_value is None:
            return
        elif type(task.return_value) in ATOMS:
            self.group.returned += (number, task.return_value)
        else:
            self.group.ended.append((number, task, keep(task)))

    def _worker(self, name: str | None) -> int | None:
        if name is None or name in self.workers:
            return None if name is None else self.workers[name]
        number = self.workers[name] = self._next_worker
        self._next_worker += 1
        self.group.rows["workers"] += (number, name)
        return number

    def _number_of(self, call: Call, task: ComputeTask) -> int:
        key = call, task.backend, task.resources, task.tag
        if (known := self._calls.get(key)) is not None:
            return known
        number = self._next_call
        self._next_call += 1
        backend, needs = task.backend or self._backend, None if task.resources is None else str(task.resources)
        self.group.rows["calls"] += (number, call.key, task.kind.name, call.name, call.text, backend, needs, task.tag)
        if len(self._calls) >= _KNOWN_CALLS:
            self._calls.clear()
        self._calls[key] = number
        return number
