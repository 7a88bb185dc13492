"""The futures of submitted tasks, each made when somebody asks for it.

Most tasks are waited for together, and nobody asks for their futures, which would be a fifth of what a task costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import overload

from .states import TaskState
from .task import ComputeTask

TaskFuture = asyncio.Future[ComputeTask]


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
            item = self._items[index] = self._future_of(item)
        return item

    def __repr__(self) -> str:
        """Return how many there are, and how many of the tasks have ended."""
        ended = sum(item.is_final if isinstance(item, ComputeTask) else item.done() for item in self._items)
        return f"<futures of {len(self)} tasks, {ended} ended>"

    def _future_of(self, task: ComputeTask) -> TaskFuture:
        if not task.is_final:
            return task._shared()
        future = self._loop.create_future()
        settle(future, task)
        return future


def settle(future: TaskFuture, task: ComputeTask) -> None:
    """Tell a future how its task has ended."""
    if task.state is TaskState.DONE:
        future.set_result(task)
    else:
        future.set_exception(task._error())
        future.exception()  # seen: the task holds it, nobody has to ask the future
