"""Memory that a worker process shares with its program, in which it leaves the frames of a unit.

A message for each of many short tasks would cost both sides more than the tasks. What is on the page needs none, and
outlives the process that wrote it. The page is written from its start for every unit; what does not fit goes by line.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Final

SIZE: Final = 2**20  # bytes: the frames of about 8,000 calls with small results
_HEAD: Final = 8  # bytes: how many of those that follow are written


def new_page() -> int:
    """Return a descriptor of the memory for a page; it has no name that could be left over."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("rhapsody page")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, SIZE)
    return fd


class Page:
    """One end of a page.

    The count is written after the bytes that it counts. A processor need not show them to another in that order; so
    the reader is to take a count by word of the writer, or from a writer that has ended or was halted, or after a
    while.
    """

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, SIZE)
        self._head = memoryview(self._memory)[:_HEAD].cast("Q")
        self._at = _HEAD

    @property
    def count(self) -> int:
        """How many bytes the writer has put on the page."""
        return self._head[0]

    def clear(self) -> None:
        """Begin anew; the reader does so for both, before the writer has a unit."""
        self._at = _HEAD
        self._head[0] = 0

    def rewind(self) -> None:
        """Write from the start: the reader has cleared the page."""
        self._at = _HEAD

    def put(self, data: bytes) -> bool:
        """Write bytes after those that are there; False where they do not fit."""
        end = self._at + len(data)
        if end > SIZE:
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
