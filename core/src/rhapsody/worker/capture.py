"""The output of an executable, bounded in memory; standard library only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

KEEP: Final = 8 * 2**20  # bytes kept of the beginning, and as many of the end, of each stream held in memory
_CHUNK: Final = 65536
ERROR_TAIL: Final = 4096


class Captured:
    """The beginning and the end of a stream, bounded in memory."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        self._left_out = 0

    def feed(self, data: bytes) -> None:
        """Take bytes."""
        room = KEEP - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._tail += data
            if len(self._tail) > 2 * KEEP:  # trimmed by halves, so that each byte is moved at most once
                self._trim()

    def _trim(self) -> None:
        extra = len(self._tail) - KEEP
        if extra > 0:
            del self._tail[:extra]
            self._left_out += extra

    def text(self) -> str:
        """Return what was kept, as text."""
        self._trim()
        parts = [self._head]
        if self._left_out:
            parts.append(bytearray(b"\n[... %d bytes left out ...]\n" % self._left_out))
        parts.append(self._tail)
        return b"".join(parts).decode("utf-8", "replace")


def drain(fd: int, sink: Captured) -> bool:
    """Read what is there, up to 1 MiB. Returns whether the pipe was closed at its other end."""
    for _ in range(16):
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            return True
        sink.feed(data)
    return False


def tail_of(path: str | None) -> str:
    """Return the end of a file that an executable wrote."""
    if path is None:
        return ""
    try:
        with Path(path).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - ERROR_TAIL))
            return file.read().decode("utf-8", "replace")
    except OSError as error:  # the program may have removed it
        return f"(its standard error cannot be read: {error})"
