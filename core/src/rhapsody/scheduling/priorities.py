"""The order in which tasks of different priorities leave the backlog."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

from rhapsody.model.task import ComputeTask

OLDEST_EVERY: Final = 10  # of so many tasks that leave, one is the one that waits longest


class PriorityQueue:
    """Tasks by priority, the highest first; those of one priority in order. Has what a backlog uses of a deque.

    Nothing starves: every tenth task that leaves is the one that was submitted first, whatever its priority.

    Args:
        tasks: in order of submission.
    """

    def __init__(self, tasks: Iterable[ComputeTask] = ()) -> None:
        self._levels: dict[int, deque[ComputeTask]] = {}
        self._order: list[int] = []  # the priorities of tasks that are here, the highest first
        self._until_oldest = OLDEST_EVERY - 1  # tasks that leave by priority before the oldest does
        self.extend(tasks)

    def __len__(self) -> int:
        """Return how many tasks are here."""
        return sum(map(len, self._levels.values()))

    def __iter__(self) -> Iterator[ComputeTask]:
        """Iterate by priority."""
        return chain.from_iterable(self._levels[priority] for priority in self._order)

    def __getitem__(self, index: int) -> ComputeTask:
        """Return the task that `popleft` takes next; there is no other index than 0."""
        return self._levels[self._leading()][index]

    def popleft(self) -> ComputeTask:
        """Take the next task.

        Raises:
            IndexError: there is none.
        """
        priority = self._leading()
        level = self._levels[priority]
        task = level.popleft()
        self._until_oldest = (self._until_oldest or OLDEST_EVERY) - 1
        if not level:
            del self._levels[priority]
            self._order.remove(priority)
        return task

    def extend(self, tasks: Iterable[ComputeTask]) -> None:
        """Put tasks behind those of their priority."""
        for task in tasks:
            self._level(task.priority).append(task)

    def extendleft(self, tasks: Iterable[ComputeTask]) -> None:
        """Put one task after the other before those of its priority."""
        for task in tasks:
            self._level(task.priority).appendleft(task)

    def clear(self) -> None:
        """Drop all tasks."""
        self._levels.clear()
        self._order.clear()

    def _level(self, priority: int) -> deque[ComputeTask]:
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = deque()
            self._order = sorted(self._levels, reverse=True)
        return level

    def _leading(self) -> int:
        """Return the priority whose first task is the next."""
        if not self._order:
            raise IndexError("no task waits")
        if self._until_oldest:
            return self._order[0]
        return min(reversed(self._order), key=lambda priority: self._levels[priority][0].submitted_at or 0.0)
