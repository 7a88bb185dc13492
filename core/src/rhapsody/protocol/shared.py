"""Large values on their way: each stored once by the program, under a key, and mapped by the workers.

A value is its pickle and the buffers that pickle leaves out of it (protocol 5: arrays of numpy and alike), one after
the other in one file. A worker maps that file: each task has a private mapping, in which what it writes is its own
copy, a page at a time. What was shared by a handle is loaded once in a worker instead, and cannot be written to.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, Final
from weakref import WeakValueDictionary, finalize

from rhapsody.model.shared import Shared

#: A stored value on the wire: its key, the sizes of its parts, and the file; None where the backend brings it.
Stored = tuple[str, tuple[int, ...], str | None]

LARGE: Final = 2**20  # bytes of an argument, from which on it is stored
KEPT: Final = 2**31  # bytes of values that were shared by handles, which a worker keeps beside the latest
_ALIGNED: Final = 64  # bytes, as numpy allocates
_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # files in it have no name
_kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()
_lock: Final = threading.RLock()
_arrived: WeakValueDictionary[str, StoredBytes] = WeakValueDictionary()  # what backends have brought


def starts_of(sizes: Iterable[int]) -> list[int]:
    """Return where each part begins, and the end of the last."""
    return list(accumulate((size + -size % _ALIGNED for size in sizes), initial=0))


def chunks_of(parts: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Yield parts as they are stored."""
    for part in parts:
        yield part
        yield bytes(-len(part) % _ALIGNED)


class StoredBytes:
    """A stored value in a file without a name: it is gone with the last process that has it open.

    Args:
        key: of the value.
        chunks: of bytes, one after the other.
        size: of them all.
    """

    def __init__(self, key: str, chunks: Iterable[bytes | memoryview], size: int) -> None:
        self.key = key
        self.size = size
        self._file = _new_file(size)
        self.close = finalize(self, self._file.close)  # where nobody calls it, as on Dask's workers
        write(self._file, chunks)
        _arrived[key] = self

    @classmethod
    def of(cls, key: str, parts: Iterable[bytes | memoryview], size: int) -> StoredBytes:
        """Store parts, each where the next multiple of 64 bytes is."""
        return cls(key, chunks_of(parts), size)

    @property
    def path(self) -> str:
        """The path by which any process of the user on this machine can open it, for as long as it is open here."""
        path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        return path if Path(path).exists() else str(self._file.name)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Travel as one buffer, which pickle leaves out of the pickle from protocol 5 on."""
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        data = bytes(mapped) if protocol < pickle.HIGHEST_PROTOCOL else pickle.PickleBuffer(mapped)
        return _arrive, (self.key, data, self.size)

    def __sizeof__(self) -> int:
        """Return the bytes of memory that it takes."""
        return self.size


def _arrive(key: str, data: Any, size: int) -> StoredBytes:
    with _lock:
        found = _arrived.get(key)
        if found is None:
            found = StoredBytes(key, [memoryview(data)], size)
        return found


def _new_file(size: int) -> IO[bytes]:
    """Return a new file: in the folder for temporary files, or in memory where that has no room.

    The pages of a file on a disk are mapped three times as fast as those of a tmpfs, and can be written out.
    """
    folder = None
    with contextlib.suppress(OSError):
        room = os.statvfs(tempfile.gettempdir())
        if room.f_bavail * room.f_frsize < 2 * size:
            folder = _MEMORY
    if Path("/proc/self/fd").exists():
        return tempfile.TemporaryFile(buffering=0, dir=folder)
    return tempfile.NamedTemporaryFile(buffering=0)  # open for as long as it is needed


def write(file: IO[bytes], chunks: Iterable[bytes | memoryview]) -> None:
    """Write chunks to a file, all of each."""
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            view = view[file.write(view) :]


# -- on a worker -------------------------------------------------------------------------------------------------------


def load(value: bytes | Stored) -> Any:
    """Load what travels in a batch, or what is stored: for one task, which may change it."""
    if isinstance(value, bytes):
        return pickle.loads(value)
    return _loaded(value, mmap.ACCESS_COPY)


def load_kept(key: str, sizes: tuple[int, ...], path: str | None) -> Any:
    """Load what was shared by a handle, once for all tasks of this process."""
    with _lock:
        found = _kept.get(key)
        if found is None:
            found = _kept[key] = _loaded((key, sizes, path), mmap.ACCESS_READ), starts_of(sizes)[-1]
            while len(_kept) > 1 and sum(size for _, size in _kept.values()) > KEPT:
                _kept.popitem(last=False)
        _kept.move_to_end(key)
        return found[0]


def handle_of(key: str, sizes: tuple[int, ...], path: str | None) -> Shared[Any]:
    """Return a handle whose value is loaded when it is asked for."""
    handle: Shared[Any] = Shared(None)
    handle._load = partial(load_kept, key, sizes, path)
    return handle


def _loaded(stored: Stored, access: int) -> Any:
    key, sizes, path = stored
    source = _arrived.get(key)
    try:
        with Path(path or (source.path if source is not None else "")).open("rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=access))
    except OSError as error:
        error.add_note(
            f"(a large argument, or a shared value, is in the file {path}, which this worker cannot read: give the "
            f"session a work_dir, or RHAPSODY_WORK_DIR, that all machines share)"
        )
        raise
    starts = starts_of(sizes)
    pickled, *buffers = (view[start : start + size] for start, size in zip(starts, sizes, strict=False))
    return pickle.loads(pickled, buffers=buffers)
