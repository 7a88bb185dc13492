"""A value that many tasks are given, by a handle: `Session.share`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")
#: What pickles a handle (the first argument), so that it arrives as itself or (the second one is True) as its value.
Reduce = Callable[["Shared[Any]", bool], tuple[Any, ...]]
#: By task: the handles among its arguments.
handles: Final[WeakKeyDictionary[Any, list[Shared[Any]]]] = WeakKeyDictionary()


class Shared(Generic[T]):
    """A value that travels once to each worker, and is loaded once there; `session.share(value)` makes one.

    As an argument of a task, also within lists, tuples, values of dicts and dataclasses, it is replaced by the value.
    Anywhere else, in a closure, say, or a global of the script, it stays a handle, and `value` is what it holds.

    The value is for reading: it must not be changed once it is shared, and on a worker all tasks have the same one,
    with arrays that cannot be written to. In threads it is the object itself.
    """

    __slots__ = ("__weakref__", "_load")

    def __init__(self, value: T) -> None:
        self._load: Callable[[], T] = lambda: value

    @property
    def value(self) -> T:
        """The value itself."""
        return self._load()

    def __repr__(self) -> str:
        """Name the type of the value, which may be large."""
        return f"<Shared {type(self.value).__name__}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel by the store of the backend, or with the value where there is none."""
        reduce = sending.reduce
        return (Shared, (self.value,)) if reduce is None else reduce(self, False)


class SharedArgument:
    """Stands for a handle among the arguments of a task on its way to a worker, where it arrives as the value."""

    __slots__ = ("handle",)

    def __init__(self, handle: Shared[Any]) -> None:
        self.handle = handle

    def __repr__(self) -> str:
        """Name the handle."""
        return repr(self.handle)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as the handle does."""
        reduce = sending.reduce
        return (_same, (self.handle.value,)) if reduce is None else reduce(self.handle, True)


def _same(value: Any) -> Any:
    return value


class _Sending(threading.local):
    """What the batch that this thread encodes has in the store of its backend.

    Attributes:
        stored: by identity of a value, where it is.
        reduce: pickles handles; None outside of batches, and where the backend has no store.
    """

    stored: Mapping[int, Any] = {}
    reduce: Reduce | None = None


sending: Final = _Sending()


@contextmanager
def sends(stored: Mapping[int, Any], reduce: Reduce | None) -> Iterator[None]:
    """Encode a batch in the calling thread."""
    before = sending.stored, sending.reduce
    sending.stored, sending.reduce = stored, reduce
    try:
        yield
    finally:
        sending.stored, sending.reduce = before
