"""Between the life of tasks and their placement: what `rhapsody_batch` is offered, and what its answer takes.

Once tasks have priorities, the engine gets only what it can run soon, so that an urgent task which comes later does not
wait behind what the engine holds ahead of need.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import ceil
from typing import Final

from rhapsody.errors import UnsupportedError
from rhapsody.model.outcome import Outcome
from rhapsody.model.resources import Resources
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.scheduling.backlog import Backlog
from rhapsody.scheduling.instructions import Change, HeldBatch
from rhapsody.scheduling.placement import Choice, Placement
from rhapsody.seam.capacity import Capacity

_SOON: Final = 0.01  # seconds of work that each slot holds ahead of need, of an engine whose tasks have priorities
_LEAST: Final = 1e-6  # seconds that any task takes


class Packing:
    """What the tasks of one engine take of it.

    While no task waits or runs that asks for resources, nothing is counted, and an engine that places tasks by itself
    (whose capacity has no cores) is left to do so.

    Args:
        backlog: what waits.
        length_of: returns the seconds that a task is expected to take; None where that is unknown.
        most: tasks at the engine, at most, as the user bounds them; None for no bound.

    Attributes:
        capacity: of the engine.
    """

    def __init__(
        self, backlog: Backlog, length_of: Callable[[ComputeTask], float | None], most: int | None = None
    ) -> None:
        self.capacity = Capacity(slots=1, units=1)
        self._most = most
        self._seconds = 0.0  # that a task takes, by the latest ends; 0 while that is unknown
        self._backlog = backlog
        self._length_of = length_of
        self._placement: Placement | None = None
        self._choice: Choice | None = None  # what is offered

    def resize(self, capacity: Capacity) -> None:
        """The engine has a size, or another one."""
        self.capacity = capacity
        if capacity.cores is None:
            return
        if self._placement is None:
            self._placement = Placement(capacity, self._length_of)
            self._backlog.split()
        else:
            self._placement.resize(capacity)

    def offer(self, in_flight: int, held: int, now: float) -> bool:
        """Offer what may go next to `rhapsody_batch`; False while nothing that may go has room.

        Args:
            in_flight: batches at the engine.
            held: tasks at the engine.
            now: seconds, of any steady clock.
        """
        backlog, capacity, placement = self._backlog, self.capacity, self._placement
        backlog.slots = slots = capacity.slots if self._most is None else min(capacity.slots, self._most)
        backlog.free = max(0, slots - in_flight)
        limit = self._limit(held) if self._is_bounded else None
        if placement is None or (backlog.is_plain and not placement.grants):
            self._choice = None
            backlog.offer(None, limit)
            return True
        running = in_flight if capacity.tasks is None else held
        others = min(max(0, running - len(placement.grants)), capacity.slots)
        self._choice = placement.choose(backlog, now, others)
        if self._choice is not None:
            least = self._choice.limit
            if limit is not None:
                least = limit if least is None else min(least, limit)
            backlog.offer(self._choice.queue, least)
        return self._choice is not None

    def has_room(self, in_flight: int, held: int) -> bool:
        """Whether the engine takes another batch, while it holds so many batches and tasks."""
        capacity = self.capacity
        if capacity.slots < 1:
            return False
        batches = capacity.slots if capacity.units is None and capacity.tasks is None else capacity.units
        if not self._is_bounded:
            most = capacity.tasks
            return (batches is None or in_flight < batches) and (most is None or held < most)
        if self._backlog.has_priorities and capacity.tasks is None:
            batches = 2 * capacity.slots if batches is None else min(batches, 2 * capacity.slots)
        most = self._most_tasks()
        return (batches is None or in_flight < batches) and (most is None or held < most)

    @property
    def _is_bounded(self) -> bool:
        """Whether the engine may hold less than its capacity."""
        return self._most is not None or self._backlog.has_priorities

    def _most_tasks(self) -> int | None:
        """Return how many tasks the engine may hold; None for no bound."""
        limits = [each for each in (self._most, self.capacity.tasks, self._soon()) if each is not None]
        return min(limits, default=None)

    def _soon(self) -> int | None:
        """Return how many tasks an engine that runs them side by side can run soon; None where none has a priority."""
        slots = self.capacity.slots
        if not self._backlog.has_priorities or self.capacity.tasks is None:
            return None
        return slots * (1 + ceil(min(_SOON / self._seconds, self.capacity.tasks)) if self._seconds else 2)

    def _limit(self, held: int) -> int | None:
        """Return how many tasks the next batch may hold; None for no bound."""
        if self.capacity.tasks is not None:
            most = self._most_tasks()
            return None if most is None else most - held
        if self._most is None:
            return None
        share = max(1, self._most // self.capacity.slots)  # a batch runs on one slot
        return min(share, self._most - held)

    def add(self, tasks: Sequence[ComputeTask], *, by_priority: bool, in_flight: int, held: int) -> bool:
        """Put tasks into the backlog.

        Returns:
            Whether they are the first that have priorities, and the engine holds more than it can run soon.
        """
        had_priorities = self._backlog.has_priorities
        self._backlog.add(tasks, by_priority=by_priority)
        if had_priorities or not by_priority:
            return False
        soon = self._soon()
        return in_flight > self.capacity.slots if soon is None else held > soon

    def observe(self, changes: Sequence[Change]) -> None:
        """Learn how long tasks take, of an engine whose tasks have priorities."""
        took = [
            event.ended_at - event.started_at
            for _, event in changes
            if isinstance(event, Outcome) and event.started_at is not None and event.ended_at is not None
        ]
        if took:
            mean = max(sum(took) / len(took), _LEAST)
            self._seconds = (self._seconds + mean) / 2 if self._seconds else mean

    def explain(self, task: ComputeTask, backend: str) -> str:
        """Return a sentence that says what a task of the backlog waits for."""
        lack = None if task.resources is None else self.capacity.lacks_now(task.resources)
        if lack is not None:
            return f"task {task.uid} waits for backend {backend!r} to grow: {lack}"
        others, slots = self._backlog.waiting - 1, self.capacity.slots
        return f"task {task.uid} waits with {others} others for one of {slots} slots of backend {backend!r}"

    def unmet(self, backend: str) -> list[Change]:
        """Take tasks off the backlog that the engine could never run, as the latest `offer` found: they fail.

        They were accepted while it was larger, or before it was known how large it is.
        """
        if self._placement is None or self.capacity.may_grow:
            return []
        found: list[Change] = []
        for queue in self._placement.unmet:
            problem = self.capacity.lacks(queue.resources or Resources()) or "there is no room for it"
            for task in self._backlog.remove(queue):
                error = UnsupportedError(f"task {task.uid}: backend {backend!r}: {problem}")
                found.append((task, Outcome(task.uid, TaskState.FAILED, exception=error)))
        self._placement.unmet.clear()
        return found

    def begin(self, batch: HeldBatch, now: float) -> None:
        """What was offered goes to the engine: count what it takes, and name its GPUs."""
        choice, self._choice = self._choice, None
        if choice is None or self._placement is None:
            return
        need, gpus, length = choice.need, choice.gpus, choice.length
        if gpus:
            batch.gpus = {batch.tasks[0].uid: gpus}
        if self.capacity.tasks is None:
            self._placement.begin(batch.uid, need, gpus, now, None if length is None else length * len(batch))
        else:
            for task in batch.tasks:
                self._placement.begin(task.uid, need, gpus, now, length)

    def end(self, key: Hashable) -> None:
        """A task, by its uid, or a batch, by its number, has ended or came back."""
        if self._placement is not None:
            self._placement.end(key)

    @property
    def is_counting(self) -> bool:
        """Whether anything that runs is counted."""
        return self._placement is not None and bool(self._placement.grants)
