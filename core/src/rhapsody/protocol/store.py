"""Stores large arguments, and what was shared by a handle, for the workers of one backend."""

from __future__ import annotations

import math
import os
import threading
import time
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from mmap import ACCESS_READ, mmap
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

import attrs

from rhapsody.model.identity import held_by, weight_of
from rhapsody.model.shared import Shared, handles, sends
from rhapsody.model.task import ComputeTask
from rhapsody.protocol.encoding import dumps
from rhapsody.protocol.shared import LARGE, Stored, StoredBytes, chunks_of, handle_of, load_kept, starts_of, write

_UNUSED: Final = 2**28  # bytes that no batch has use for, and that are kept in case the next one has
_STEP: Final = 2**20  # bytes that are compared at once
_REMEMBERED: Final = 64  # values of which it is known what they are


@attrs.define(eq=False)
class _Entry:
    """A stored value, and the batches that have use for it."""

    stored: Stored
    size: int
    users: weakref.WeakSet[Any] = attrs.field(factory=weakref.WeakSet)


@attrs.define(eq=False)
class _Seen:
    """What a value was when it was last read."""

    refer: Callable[[], Any]
    key: str
    at: float  # seconds since the epoch: a task that was submitted before has this value


class SharedStore:
    """Stores values for the workers of one backend: equal ones once, for as long as batches have use for them.

    `context.store = FileStore()` in `rhapsody_init` has core store large arguments before it submits their batch. A
    subclass says where: `put`, `has` and `drop`, called from any thread, one at a time.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # by key, the latest last
        self._seen: OrderedDict[int, _Seen] = OrderedDict()  # by identity

    def put(self, key: str, parts: Sequence[bytes | memoryview], size: int) -> str | None:
        """Store a value. Blocks.

        Args:
            key: by which it is asked for.
            parts: of it, to be stored as `StoredBytes` does.
            size: of them, as they are stored.

        Returns:
            The path by which workers open it; None where the backend brings it to them.
        """
        raise NotImplementedError

    def has(self, key: str) -> bool:
        """Return whether a value that was put is still there."""
        raise NotImplementedError

    def read(self, key: str) -> mmap | None:
        """Return a mapping of a value that was put; None where it cannot be read any more."""
        return None

    def drop(self, key: str) -> None:
        """Remove a value."""
        raise NotImplementedError

    def close(self) -> None:
        """Remove all values."""
        with self._lock:
            while self._entries:
                self.drop(self._entries.popitem()[0])
            self._seen.clear()

    def store(self, values: Iterable[tuple[Any, float]], batch: Any) -> dict[int, Stored]:
        """Store values for a batch, and return those that are large, by identity. Blocks.

        Args:
            values: each with the time when the last of the tasks was submitted that has it.
            batch: kept alive for as long as it has use for them.
        """
        found = {}
        for value, submitted_at in values:
            if (stored := self._stored(value, submitted_at, batch)) is not None:
                found[id(value)] = stored
        return found

    def reduce(self, batch: Any, handle: Shared[Any], as_value: bool) -> tuple[Any, ...]:
        """Pickle a handle for a batch."""
        stored = self._stored(handle, 0.0, batch)
        assert stored is not None, "what a handle holds is stored whatever its size"
        return (load_kept if as_value else handle_of), stored

    def _stored(self, value: Any, submitted_at: float, batch: Any) -> Stored | None:
        with self._lock:
            seen = self._seen.get(id(value))
            if seen is None or seen.refer() is not value or submitted_at > seen.at or not self._holds(seen.key):
                seen = self._read(value, batch)
                if seen is None:
                    return None
            entry = self._entries[seen.key]
            entry.users.add(batch)
            self._entries.move_to_end(seen.key)
            self._trim()
            return entry.stored

    def keys_of(self, batch: Any) -> list[str]:
        """Return the keys of the values for which a batch has use."""
        with self._lock:
            return [key for key, entry in self._entries.items() if batch in entry.users]

    def _holds(self, key: str) -> bool:
        return key in self._entries and self.has(key)

    def _read(self, value: Any, batch: Any) -> _Seen | None:
        """Read a value, and store it unless its content is there already; None where it is small after all."""
        is_handle = isinstance(value, Shared)
        at = math.inf if is_handle else time.time()
        held = value.value if is_handle else value
        buffers: list[memoryview] = []
        with sends({}, partial(self.reduce, batch)):
            parts: list[bytes | memoryview] = [dumps(held, lambda: _uids(batch, value), buffers), *buffers]
        sizes = tuple(map(len, parts))
        size = starts_of(sizes)[-1]
        if size < LARGE and not is_handle:
            return None
        key = next((key for key in self._entries if self._is_equal(key, sizes, parts)), None)
        if key is None:
            key = uuid.uuid4().hex
            self._entries[key] = _Entry((key, sizes, self.put(key, parts, size)), size)
        seen = self._seen[id(value)] = _Seen(_referring_to(value), key, at)
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return seen

    def _is_equal(self, key: str, sizes: tuple[int, ...], parts: Sequence[bytes | memoryview]) -> bool:
        """Return whether a value is there under a key; a hash would take longer, and at the first time too."""
        if self._entries[key].stored[1] != sizes or not self.has(key):
            return False
        there = self.read(key)
        if there is None:
            return False
        with there:
            return all(
                bytes(part[at : at + _STEP]) == there[start + at : start + min(at + _STEP, len(part))]
                for part, start in zip(parts, starts_of(sizes), strict=False)
                for at in range(0, len(part), _STEP)
            )

    def _trim(self) -> None:
        """Drop what is too much of what no batch has use for, the oldest first."""
        unused = {key: entry.size for key, entry in self._entries.items() if not entry.users}
        excess = sum(unused.values()) - _UNUSED
        for key, size in unused.items():
            if excess <= 0:
                break
            excess -= size
            del self._entries[key]
            self.drop(key)
        for identity, seen in [*self._seen.items()]:  # values that must be kept alive to be recognized
            if isinstance(seen.refer, _Held) and not (seen.key in self._entries and self._entries[seen.key].users):
                del self._seen[identity]


class FileStore(SharedStore):
    """Stores values in files, for workers that can read them.

    Args:
        folder: that all machines of the workers share; None for workers of this machine: then the files have no name,
            and are gone with this process, however it ends.
    """

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self._folder = folder
        self._files: dict[str, StoredBytes] = {}
        self._paths: dict[str, Path] = {}

    def put(self, key: str, parts: Sequence[bytes | memoryview], size: int) -> str:
        """Write a file."""
        if self._folder is None:
            file = self._files[key] = StoredBytes.of(key, parts, size)
            return file.path
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{key}.{os.getpid()}.{uuid.uuid4().hex[:8]}"  # several backends may share the folder
        with path.open("wb", buffering=0) as target:
            write(target, chunks_of(parts))
        self._paths[key] = path
        return str(path)

    def has(self, key: str) -> bool:
        """Return whether it was put."""
        return key in self._files or key in self._paths

    def read(self, key: str) -> mmap | None:
        """Map the file."""
        with Path(self._entries[key].stored[2] or "").open("rb") as file:
            return mmap(file.fileno(), 0, access=ACCESS_READ)

    def drop(self, key: str) -> None:
        """Remove the file."""
        if (file := self._files.pop(key, None)) is not None:
            file.close()
        if (path := self._paths.pop(key, None)) is not None:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the files, and the folder."""
        super().close()
        if self._folder is not None and self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()


class _Held:
    """Refers to what cannot be referred to weakly."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self) -> Any:
        return self.value


def _referring_to(value: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(value)
    except TypeError:
        return _Held(value)


def _uids(batch: Any, value: Any) -> list[str]:
    """Return the tasks of a batch that draw from a copy of what is in a value; those with a seed do not."""
    return [
        task.uid
        for task in batch.tasks
        if (task.function is value and task.seed is None)
        or any(each is value for each in (*task.args, *task.kwargs.values()))
    ]


def large_values(tasks: Sequence[ComputeTask]) -> Mapping[int, tuple[Any, float]]:
    """Return what is large, or shared by a handle, of what function tasks take along, by identity.

    Each with the time when the last of the tasks was submitted that has it.
    """
    found: dict[int, tuple[Any, float]] = {}
    function: Any = None
    types = set(map(type, chain.from_iterable([task.args for task in tasks])))
    are_small = types <= _SMALL and not any(map(_kwargs_of, tasks))  # of a whole batch this costs little
    for task in tasks:
        values: Iterable[Any] = ()
        if task.function is not function:
            function = task.function
            values = (function,)
            found |= {id(held): (held, 0.0) for held in held_by(function) if isinstance(held, Shared)}
        elif are_small:
            continue
        if not are_small:
            values = (*values, *task.args, *task.kwargs.values())
            found |= {id(handle): (handle, 0.0) for handle in handles.get(task, ())}
        for value in values:
            if type(value) not in _SMALL and weight_of(value) >= LARGE:
                found[id(value)] = value, max(task.submitted_at or math.inf, found.get(id(value), (None, 0.0))[1])
    return found


_SMALL: Final = frozenset({type(None), bool, int, float, complex})
_kwargs_of: Final = attrgetter("kwargs")
