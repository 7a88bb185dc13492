"""Processes of this node, seen through the operating system.

Dragon's own join is a request to its global services that waits for the answer: while it waits, Dragon keeps Python's
garbage collector off in the whole process, and if the runtime dies it waits for good. So where a process is on this
node its end is awaited through a pidfd, and Dragon is asked only afterwards, for the exit code.
"""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be collected does not."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def wait_for_end(pid: int, seconds: float | None) -> bool:
    """Wait for the end of a process that need not be a child; False if the time is over before."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return _ends(fd, seconds)
    finally:
        os.close(fd)


def _ends(fd: int, seconds: float | None) -> bool:
    poll = select.poll()  # not `select`, which cannot be asked about a descriptor above 1023
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if seconds is None else max(0.0, seconds) * 1000))


def end(pid: int, patience: float, deadline: float) -> bool:
    """Give a process that need not be a child `patience` seconds to leave, and kill it then.

    Returns whether it is gone, which it is given another `deadline` seconds for.
    """
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if _ends(fd, patience):
            return True
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        return _ends(fd, deadline)
    finally:
        os.close(fd)


class Ends:
    """Waits for the ends of several processes."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._pids: dict[int, int] = {}  # by descriptor
        self._ended: list[int] = []

    def add(self, pid: int) -> None:
        """Wait for this process too."""
        if pid in self._pids.values():
            return
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._ended.append(pid)
            return
        self._pids[fd] = pid
        self._poll.register(fd, select.POLLIN)

    def wait(self, seconds: float) -> list[int]:
        """Return the processes that have ended, after `seconds` at most."""
        ended, self._ended = self._ended, []
        for fd, _ in self._poll.poll(0 if ended else seconds * 1000):
            self._poll.unregister(fd)
            os.close(fd)
            ended.append(self._pids.pop(fd))
        return ended

    def close(self) -> None:
        """Wait no more."""
        for fd in self._pids:
            os.close(fd)
        self._pids.clear()
