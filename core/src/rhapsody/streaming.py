"""Waiting for the ends of tasks: of all, of each as it comes, of an endless stream; in bounded memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol

from .admission import described
from .errors import SessionError
from .states import TaskState
from .task import ComputeTask

if TYPE_CHECKING:
    from .session import Session

IN_FLIGHT: Final = 10_000  # tasks: enough that no engine waits for the stream, about 10 MB
_CHUNK: Final = 1000  # tasks submitted at once: about 5 ms of the loop's time


class _Watch(Protocol):
    def tell(self, ended: Sequence[str]) -> None: ...


class Ends:
    """Tells whoever waits of the tasks that have ended."""

    def __init__(self) -> None:
        self._watches: list[_Watch] = []

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._watches)

    def add(self, watch: _Watch) -> None:
        """Tell this one, from now on."""
        self._watches.append(watch)

    def remove(self, watch: _Watch) -> None:
        """Tell it no more."""
        self._watches.remove(watch)

    def tell(self, ended: Sequence[str]) -> None:
        """Tell everybody of the uids of tasks that have ended."""
        for watch in self._watches:
            watch.tell(ended)

    async def wait(self, uids: Iterable[str]) -> None:
        """Wait until these tasks have ended."""
        countdown = _Countdown(set(uids))
        if not countdown.remaining:
            return
        self.add(countdown)
        try:
            await countdown.done
        finally:
            self.remove(countdown)


class _Countdown:
    """Waits for the last of some tasks."""

    def __init__(self, remaining: set[str]) -> None:
        self.remaining = remaining
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def tell(self, ended: Sequence[str]) -> None:
        self.remaining.difference_update(ended)
        if not self.remaining and not self.done.done():
            self.done.set_result(None)


class _Feed:
    """Collects tasks as they end."""

    def __init__(self) -> None:
        self.awaited: dict[str, ComputeTask] = {}
        self.ended: deque[ComputeTask] = deque()
        self.arrived = asyncio.Event()

    def __len__(self) -> int:
        return len(self.awaited) + len(self.ended)

    def tell(self, ended: Sequence[str]) -> None:
        take = self.awaited.pop
        for uid in ended:
            task = take(uid, None)
            if task is not None:
                self.ended.append(task)
        if self.ended:
            self.arrived.set()


async def map_in_order(
    session: Session, function: Callable[..., Any], iterables: Sequence[Iterable[Any]], backend: str | None, most: int
) -> AsyncGenerator[Any, None]:
    """Implement `Session.map`."""
    size = _chunk(most)
    calls: Iterator[tuple[Any, ...]] | None = zip(*iterables, strict=False)
    window: deque[ComputeTask] = deque()
    try:
        while True:
            if calls is not None and most - len(window) >= size:
                tasks = [ComputeTask(function=function, args=args, backend=backend) for args in islice(calls, size)]
                if len(tasks) < size:
                    calls = None
                await session.submit_tasks(tasks)
                window.extend(tasks)
            elif window:
                while not window[0].is_final:
                    await window[0]._ended()
                yield window.popleft().result().return_value
            else:
                return
    finally:
        left = [task for task in window if not task.is_final]
        if left:
            await session.cancel_tasks(left)


async def in_order_of_completion(
    session: Session,
    accepted: Mapping[str, ComputeTask],
    ends: Ends,
    tasks: Iterable[ComputeTask | Mapping[str, Any]],
    most: int,
) -> AsyncGenerator[ComputeTask, None]:
    """Implement `Session.as_completed`."""
    size = _chunk(most)
    source: Iterator[ComputeTask | Mapping[str, Any]] | None = iter(tasks)
    feed = _Feed()
    ends.add(feed)
    try:
        while True:
            if source is not None and most - len(feed) >= size:
                chunk = [described(item, "as_completed") for item in islice(source, size)]
                if len(chunk) < size:
                    source = None
                await _watch(session, accepted, feed, chunk)
            elif feed.ended:
                yield feed.ended.popleft()
            elif feed.awaited:
                feed.arrived.clear()
                await feed.arrived.wait()
            else:
                return
    finally:
        ends.remove(feed)


async def _watch(
    session: Session, accepted: Mapping[str, ComputeTask], feed: _Feed, tasks: Sequence[ComputeTask]
) -> None:
    """Have tasks in the feed, and submit those that were not."""
    new: list[ComputeTask] = []
    for task in tasks:
        if task.is_final:
            feed.ended.append(task)
            continue
        if task.state is TaskState.NEW:
            new.append(task)
        elif accepted.get(task.uid) is not task:
            raise SessionError(f"task {task.uid} is not a task of session {session.uid}")
        feed.awaited[task.uid] = task
    if new:
        await session.submit_tasks(new)


def _chunk(most: int) -> int:
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise SessionError(f"in_flight must be a positive whole number of tasks, not {most!r}")
    return max(1, min(_CHUNK, most // 4))
