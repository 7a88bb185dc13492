"""A small process that ends what its parent started, should the parent die without doing so.

No code of ours runs when a process gets SIGKILL, or SIGTERM without a handler. So the process groups that a backend
starts (executables, pool workers) are named to a guard: this file, run by a bare interpreter, reading lines from a
pipe. The pipe closes with the parent, however that ends; the guard then sends SIGTERM to every group still named,
SIGKILL after a grace period, and exits. A parent that ends in good order has unnamed them all.

The protocol: `+PGID` names a group, `-PGID` takes it back.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

GRACE = 1.0  # seconds from SIGTERM to SIGKILL


class Guard:
    """The parent's side. The process is started with the first group, and ended by `close`. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    def watch(self, group: int) -> None:
        """Have the process group ended if this process dies."""
        self._tell(b"+%d\n" % group)

    def unwatch(self, group: int) -> None:
        """Take a group back, once it has ended."""
        self._tell(b"-%d\n" % group)

    def close(self) -> None:
        """End the guard. Groups still named are ended by it first."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            assert process.stdin is not None
            process.stdin.close()
            process.wait()

    def _tell(self, line: bytes) -> None:
        with self._lock:
            if (
                self._process is None or self._owner != os.getpid()
            ):  # none yet, or it belongs to the process we forked off
                self._process = self._start()
                self._owner = os.getpid()
            assert self._process.stdin is not None
            os.write(self._process.stdin.fileno(), line)  # shorter than PIPE_BUF: written whole

    @staticmethod
    def _start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # out of reach of the terminal's Ctrl-C
        )


def kill_group(group: int, signum: int) -> bool:
    """Send a signal to a process group. Returns whether there was one to send it to."""
    try:
        os.killpg(group, signum)
    except ProcessLookupError:
        return False
    except PermissionError:  # only zombies, or processes that took other rights: nothing that we may end
        return False
    return True


def _main() -> None:
    groups: set[int] = set()
    for line in sys.stdin.buffer:
        (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
    alive = {group for group in groups if kill_group(group, signal.SIGTERM)}
    deadline = time.monotonic() + GRACE
    while alive and time.monotonic() < deadline:
        time.sleep(0.02)
        alive = {group for group in alive if kill_group(group, 0)}
    for group in alive:
        kill_group(group, signal.SIGKILL)


if __name__ == "__main__":
    _main()
