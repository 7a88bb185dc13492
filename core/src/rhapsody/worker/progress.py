"""What a worker's batches began and ended, in memory that outlives the worker."""

from __future__ import annotations

import mmap
import os
import struct
import sys
import tempfile
from pathlib import Path
from typing import Final

_LENGTH: Final = struct.Struct("<Q")  # of a frame; see `rhapsody.protocol.frames`
PAGE_SIZE: Final = 2**20  # bytes: the frames of about 8,000 calls with small results
_HEAD: Final = 16  # bytes of a page: how many of those that follow are written, and how many tasks may begin
_NO_LIMIT: Final = 2**64 - 1
_RECORD: Final = struct.Struct("<QQ")  # number of a batch, and how many of its tasks may have begun


class Progress:
    """How far a worker came in its latest batches: a table of records in a file that is mapped into memory.

    The operating system keeps what was written, whatever ends the process. A record is written before its task begins,
    so what is not in the table has not begun. One thread writes a record at a time; several processes may share a
    table, each with records of its own.

    Args:
        path: of the file; made if it is not there.
        records: how many batches are remembered.
    """

    def __init__(self, path: str | Path, records: int) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, _RECORD.size * records)
            self._memory = mmap.mmap(fd, _RECORD.size * records)
        finally:
            os.close(fd)
        self._records = records
        self._next = 0

    def reserve(self, batch: int) -> int:
        """Return a record for a batch of which nothing has begun; that of the oldest batch is used again."""
        record = self._next
        self._next = (record + 1) % self._records
        self.note(record, batch, 0)
        return record

    def note(self, record: int, batch: int, begun: int) -> None:
        """Write that so many tasks of a batch, from its first, may have begun."""
        _RECORD.pack_into(self._memory, record * _RECORD.size, batch, begun)

    def begun(self) -> dict[int, int]:
        """Return how many tasks of each batch may have begun."""
        return _table(self._memory)

    def close(self) -> None:
        """Let the memory go; the file stays."""
        self._memory.close()


def read_progress(path: str | Path) -> dict[int, int] | None:
    """Return how many tasks of each batch may have begun, from the file of a worker; None if it is not there."""
    try:
        return _table(Path(path).read_bytes())
    except OSError:  # it is on another host, or the worker never had a batch
        return None


def _table(data: bytes | mmap.mmap) -> dict[int, int]:
    return {batch: begun for batch, begun in _RECORD.iter_unpack(data) if batch}


class KeptFrames:
    """The frames of the batch that a worker runs, in a file that is mapped into memory and outlives the worker.

    A report costs more than a short task, so workers report several ends together; what they had yet to report when
    they died is read from here. Each batch that runs at a time has a page of its own. A full page is written from its
    start again: the frames that it loses were reported long before. Each is at most as long as a page.

    Args:
        path: of the file; made if it is not there.
        pages: how many it has.
        page: which is this one, from 0.
    """

    def __init__(self, path: str | Path, pages: int, page: int) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, PAGE_SIZE * pages)
            self._memory = mmap.mmap(fd, PAGE_SIZE, offset=PAGE_SIZE * page)
        finally:
            os.close(fd)
        self._head = memoryview(self._memory)[:_HEAD].cast("Q")  # number of the batch, and how many bytes are written
        self._at = _HEAD

    def begin(self, batch: int) -> None:
        """Begin a batch, which has another number than the one before."""
        self._head[1] = 0  # before the number: no batch may be given another's frames
        self._head[0] = batch
        self._at = _HEAD

    def keep(self, frame: bytes) -> None:
        """Keep the frame of a task that has ended, before the next task begins."""
        if self._at + len(frame) > PAGE_SIZE:
            self._head[1] = 0
            self._at = _HEAD
            if len(frame) > PAGE_SIZE - _HEAD:
                return
        end = self._at + len(frame)
        self._memory[self._at : end] = frame
        self._at = end
        self._head[1] = end - _HEAD  # after the bytes that it counts

    def close(self) -> None:
        """Let the memory go; the file stays."""
        self._head.release()
        self._memory.close()


def kept_frames(path: str | Path, batch: int) -> bytes:
    """Return the frames of a batch that its worker has kept, from the worker's file; none if it is not there."""
    try:
        with Path(path).open("rb") as file:
            while len(head := file.read(_HEAD)) == _HEAD:
                number, count = _RECORD.unpack(head)
                if number == batch:
                    return file.read(count)
                file.seek(PAGE_SIZE - _HEAD, os.SEEK_CUR)
    except OSError:  # it is on another host, or the worker never had a batch
        pass
    return b""


def whole_frames(data: bytes) -> int:
    """Return how many bytes of a record of frames are whole; what comes after them is still being written."""
    end = 0
    while end + _LENGTH.size <= len(data):
        after = end + _LENGTH.size + _LENGTH.unpack_from(data, end)[0]
        if after > len(data):
            break
        end = after
    return end


def new_page() -> int:
    """Return a descriptor of the memory for a page; it has no name that could be left over."""
    if sys.platform == "linux":
        fd = os.memfd_create("rhapsody page")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, PAGE_SIZE)
    return fd


class FramePage:
    """One end of a page of memory in which a worker leaves frames for the process that started it.

    A message for each of many short tasks would cost both sides more than the tasks. What is on the page needs none,
    and outlives its writer. It is written from its start for every batch.

    The count is written after the bytes that it counts. A processor need not show them to another in that order; so
    the reader is to take a count that the writer has sent, or from a writer that has ended or was halted, or after a
    while.
    """

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, PAGE_SIZE)
        self._head = memoryview(self._memory)[:_HEAD].cast("Q")
        self._at = _HEAD

    @property
    def count(self) -> int:
        """How many bytes the writer has put on the page."""
        return self._head[0]

    @property
    def limit(self) -> int:
        """How many tasks of the batch may begin; the writer reads it before each of them."""
        return self._head[1]

    @limit.setter
    def limit(self, tasks: int) -> None:
        """Set by the reader, while the writer is halted: otherwise a task may begin that was to be kept from it."""
        self._head[1] = tasks

    def clear(self) -> None:
        """Begin anew; the reader does so for both, before the writer has a batch."""
        self._at = _HEAD
        self._head[0] = 0
        self._head[1] = _NO_LIMIT

    def rewind(self) -> None:
        """Write from the start: the reader has cleared the page."""
        self._at = _HEAD

    def put(self, data: bytes) -> bool:
        """Write bytes after those that are there; False where they do not fit."""
        end = self._at + len(data)
        if end > PAGE_SIZE:
            return False
        self._memory[self._at : end] = data
        self._at = end
        self._head[0] = end - _HEAD
        return True

    def take(self, count: int) -> bytes:
        """Return what has not been taken of the first `count` bytes."""
        start, self._at = self._at, max(self._at, _HEAD + count)
        return self._memory[start : self._at]

    def close(self) -> None:
        """Let the memory go."""
        self._head.release()
        self._memory.close()
