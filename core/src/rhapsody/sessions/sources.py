"""What `Session.map` and `Session.as_completed` take items from: any iterable, slow and asynchronous ones too.

A container is advanced on the loop. Any other iterator may block, and is advanced in a thread of its own, in the
context of whoever iterates; an asynchronous one by a task. Both stop while there is no room, before the next item.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
from contextvars import copy_context
from itertools import count, islice, repeat
from typing import Any, Final, Protocol

#: Types whose iterators do nothing that takes time.
_FAST: Final = frozenset({list, tuple, range, set, frozenset, dict, str, bytes, deque, count, repeat})
_END: Final = object()


class Source(Protocol):
    """Items, as there is room for them.

    Attributes:
        is_over: whether there is nothing more to come; what has come may still be taken.
        error: what the iterable has raised.
    """

    is_over: bool
    error: BaseException | None

    def take(self, room: int, size: int) -> Sequence[Any]:
        """Return what has come, and go on.

        Args:
            room: items that there is room for.
            size: bytes that there is room for.
        """

    async def close(self) -> None:
        """Go on no more."""


def source_of(iterables: Sequence[Any], size_of: Callable[[Any], int], wake: Callable[[], None]) -> Source:
    """Return the source of the items of an iterable, or of tuples of the items of several.

    Args:
        iterables: of which the shortest ends the source.
        size_of: the bytes of an item.
        wake: called on the loop when something has come, or nothing more will.
    """
    if any(isinstance(each, AsyncIterable) for each in iterables):
        one = iterables[0] if len(iterables) == 1 else None
        return _Async(one if one is not None else _zipped(iterables), size_of, wake, single=one is not None)
    items: Iterator[Any] = zip(*iterables, strict=False)
    if _FAST.issuperset(map(type, iterables)):
        return _OnLoop(items, size_of)
    return _InThread(items, size_of, wake)


class _OnLoop:
    """Takes items as they are asked for."""

    def __init__(self, items: Iterator[Any], size_of: Callable[[Any], int]) -> None:
        self.is_over = False
        self.error: BaseException | None = None
        self._items = items
        self._size_of = size_of

    def take(self, room: int, size: int) -> Sequence[Any]:
        taken: list[Any] = []
        for item in islice(self._items, max(0, room)):
            taken.append(item)
            size -= self._size_of(item)
            if size <= 0:
                return taken
        self.is_over = len(taken) < room
        return taken

    async def close(self) -> None:
        self.is_over = True


class _Ahead:
    """What has come and was not taken, between the loop and what advances the iterator."""

    def __init__(self, size_of: Callable[[Any], int], wake: Callable[[], None]) -> None:
        self.is_over = False
        self.error: BaseException | None = None
        self._size_of = size_of
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._items: deque[Any] = deque()
        self._room = self._size = 0  # that was left when items were last taken, less what has come since
        self._is_awake = True
        self._closed = False

    def _has_room(self) -> bool:
        return self._closed or (self._room > 0 and self._size > 0)

    def _put(self, item: Any) -> bool:
        """Add an item. Returns whether the loop must be woken."""
        self._items.append(item)
        self._room -= 1
        self._size -= self._size_of(item)
        was_awake, self._is_awake = self._is_awake, True
        return not was_awake

    def _taken(self, room: int, size: int) -> Sequence[Any]:
        taken, self._items = list(self._items), deque()
        self._room = room - len(taken)
        self._size = size - sum(map(self._size_of, taken))
        self._is_awake = False
        return taken


class _InThread(_Ahead):
    """Advances an iterator in a thread. One that never comes back is left behind there."""

    def __init__(self, items: Iterator[Any], size_of: Callable[[Any], int], wake: Callable[[], None]) -> None:
        super().__init__(size_of, wake)
        self._changed = threading.Condition()
        context = copy_context()
        threading.Thread(target=context.run, args=(self._run, items), name="rhapsody source", daemon=True).start()

    def take(self, room: int, size: int) -> Sequence[Any]:
        with self._changed:
            taken = self._taken(room, size)
            if self._has_room():
                self._changed.notify()
            return taken

    async def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self, items: Iterator[Any]) -> None:
        error: BaseException | None = None
        try:
            while self._may_go_on():
                item = next(items, _END)
                if item is _END:
                    break
                with self._changed:
                    must_wake = self._put(item)
                del item
                if must_wake:
                    self._call_wake()
        except BaseException as failure:
            error = failure
        with self._changed:
            self.error, self.is_over = error, True
        self._call_wake()

    def _may_go_on(self) -> bool:
        with self._changed:
            self._changed.wait_for(self._has_room)
            return not self._closed

    def _call_wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:  # the loop is closed, and nobody waits any more
            pass


class _Async(_Ahead):
    """Advances an asynchronous iterator by a task."""

    def __init__(
        self, items: AsyncIterable[Any], size_of: Callable[[Any], int], wake: Callable[[], None], *, single: bool
    ) -> None:
        super().__init__(size_of, wake)
        self._changed = asyncio.Event()
        self._single = single
        self._task = self._loop.create_task(self._run(aiter(items)), name="rhapsody source")

    def take(self, room: int, size: int) -> Sequence[Any]:
        taken = self._taken(room, size)
        self._changed.set()
        return taken

    async def close(self) -> None:
        self._closed = True
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self, items: AsyncIterator[Any]) -> None:
        try:
            while True:
                while not self._has_room():
                    self._changed.clear()
                    await self._changed.wait()
                item = await anext(items, _END)
                if item is _END:
                    break
                if self._put((item,) if self._single else item):
                    self._wake()
                del item
        except asyncio.CancelledError as error:
            if not self._closed:
                self.error = error
        except BaseException as error:
            self.error = error
        finally:
            self.is_over = True
            self._wake()
            close = getattr(items, "aclose", None)  # of a generator
            if close is not None:
                await close()


async def _zipped(iterables: Sequence[Any]) -> AsyncIterator[tuple[Any, ...]]:
    """Yield tuples of the items of iterables, of which some are asynchronous."""
    advances = [_advance_of(each) for each in iterables]
    while True:
        items = [await advance() for advance in advances]
        if any(item is _END for item in items):
            return
        yield tuple(items)


def _advance_of(iterable: Any) -> Callable[[], Any]:
    if isinstance(iterable, AsyncIterable):
        items = aiter(iterable)
        return lambda: anext(items, _END)
    plain = iter(iterable)

    async def advance() -> Any:
        if type(iterable) in _FAST:
            return next(plain, _END)
        return await asyncio.to_thread(next, plain, _END)

    return advance
