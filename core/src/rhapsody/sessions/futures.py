"""The futures of submitted tasks, each made when somebody asks for it.

Most tasks are waited for together, and nobody asks for their futures, which would be a fifth of what a task costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import overload

from rhapsody.errors import SessionError
from rhapsody.model.task import ComputeTask
from rhapsody.sessions.recorder import TaskFuture, future_of


class TaskFutures(Sequence[TaskFuture]):
    """What `submit_tasks` returns: reads like a list of futures, one for each task, in the same order.

    Args:
        tasks: tasks that a session has accepted.
        loop: of the session.
    """

    def __init__(self, tasks: Sequence[ComputeTask], loop: asyncio.AbstractEventLoop) -> None:
        self._items: list[ComputeTask | TaskFuture] = list(tasks)
        self._loop = loop

    def __len__(self) -> int:
        """Return the number of tasks."""
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> TaskFuture: ...
    @overload
    def __getitem__(self, index: slice) -> list[TaskFuture]: ...
    def __getitem__(self, index: int | slice) -> TaskFuture | list[TaskFuture]:
        """Return the future of a task, always the same one."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        item = self._items[index]
        if isinstance(item, ComputeTask):
            item = self._items[index] = future_of(item, self._loop)
        return item

    def __repr__(self) -> str:
        """Return how many there are, and how many of the tasks have ended."""
        ended = sum(item.is_final if isinstance(item, ComputeTask) else item.done() for item in self._items)
        return f"<futures of {len(self)} tasks, {ended} ended>"


class StreamFutures(TaskFutures):
    """What `submit_tasks` returns for a generator: of very many tasks, those that ended before it did are let go of.

    Args:
        most: tasks that may be waited for at the same time, and of which all are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: dict[int, ComputeTask | TaskFuture] = {}  # by their place
        self._places: dict[str, int] = {}  # by uid, of those that have not ended
        self._count = 0
        self._room: tuple[int, asyncio.Future[None]] | None = None  # how many may be left, and who waits for that

    def extend(self, tasks: Iterable[ComputeTask], loop: asyncio.AbstractEventLoop) -> None:
        """Add tasks that were accepted."""
        self._loop = loop
        kept_all = self._count <= self._most
        for task in tasks:
            self._kept[self._count] = task
            if not task.is_final:
                self._places[task.uid] = self._count
            self._count += 1
        if kept_all and self._count > self._most:
            self._kept = {place: self._kept[place] for place in self._places.values()}

    def notify(self, ended: Sequence[str]) -> None:
        """Let go of tasks that have ended."""
        lets_go = self._count > self._most
        for uid in ended:
            place = self._places.pop(uid, None)
            if place is not None and lets_go:
                del self._kept[place]
        if self._room is not None and len(self._places) <= self._room[0] and not self._room[1].done():
            self._room[1].set_result(None)

    async def room_for(self, count: int) -> None:
        """Wait until so many more tasks do not exceed what may be waited for at the same time."""
        left = max(0, self._most - count)
        if len(self._places) > left:
            self._room = left, asyncio.get_running_loop().create_future()
            await self._room[1]

    def __len__(self) -> int:
        """Return the number of tasks that the generator has yielded."""
        return self._count

    @overload
    def __getitem__(self, index: int) -> TaskFuture: ...
    @overload
    def __getitem__(self, index: slice) -> list[TaskFuture]: ...
    def __getitem__(self, index: int | slice) -> TaskFuture | list[TaskFuture]:
        """Return the future of a task, always the same one.

        Raises:
            SessionError: the task had ended before the generator did, and was let go of.
        """
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(self._count)[index]
        item = self._kept.get(place)
        if item is None:
            raise SessionError(
                f"task {place} of a generator of {self._count} had ended before the generator did, and was let go of; "
                f"take the tasks from session.as_completed(...), or submit them as a list"
            )
        if isinstance(item, ComputeTask):
            item = self._kept[place] = future_of(item, self._loop)
        return item

    def __repr__(self) -> str:
        """Return how many there are, and how many of the tasks have ended."""
        items = self._kept.values()
        left = sum(not item.is_final if isinstance(item, ComputeTask) else not item.done() for item in items)
        return f"<futures of {self._count} tasks, {self._count - left} ended>"
