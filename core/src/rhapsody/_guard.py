"""A small process that ends what its parent started, should the parent die without doing so.

No code of ours runs when a process gets SIGKILL, or SIGTERM without a handler. So the process groups that a backend
starts (executables, pool workers) are named to a guard: this file, run by a bare interpreter, reading lines from a
pipe. When its parent dies, it sends SIGTERM to every group still named, SIGKILL after a grace period, and exits. A
parent that ends in good order has unnamed them all.

The pipe alone would not tell of the parent's death: whatever the parent forks (a pool of `multiprocessing`, say) holds
the pipe open too, and may live on. So the guard watches the parent itself.

The protocol, a line each: `+PGID` names a group, `-PGID` takes it back, `.` ends the guard.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Final

GRACE: Final = 1.0  # seconds from SIGTERM to SIGKILL
_LOOK: Final = 0.2  # seconds between two looks for the parent, where no descriptor tells of its death


class Guard:
    """The parent's side. The process is started with the first group, and ended by `close`. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._groups: set[int] = set()
        self._owner = os.getpid()

    def watch(self, group: int) -> None:
        """Have the process group ended if this process dies.

        Raises:
            OSError: the guard cannot be started.
        """
        with self._lock:
            if self._owner != os.getpid():  # forked: the guard and its groups are those of the process we come from
                self._process, self._groups, self._owner = None, set(), os.getpid()
            self._groups.add(group)
            self._tell(b"+%d\n" % group)

    def unwatch(self, group: int) -> None:
        """Take a group back, once it has ended."""
        with self._lock:
            if group in self._groups and self._owner == os.getpid():
                self._groups.discard(group)
                self._tell(b"-%d\n" % group)

    def close(self) -> None:
        """End the guard. Groups still named are ended by it first."""
        with self._lock:
            process, self._process = self._process, None
            self._groups.clear()
            if process is None or self._owner != os.getpid():
                return
            assert process.stdin is not None
            try:
                os.write(process.stdin.fileno(), b".\n")
            except BrokenPipeError:  # somebody has killed it
                pass
            process.stdin.close()
            try:
                process.wait(GRACE + 2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _tell(self, line: bytes) -> None:
        process = self._process
        if process is not None:
            assert process.stdin is not None
            try:
                os.write(process.stdin.fileno(), line)  # shorter than PIPE_BUF: written whole
                return
            except BrokenPipeError:  # somebody has killed it: another takes its place
                process.stdin.close()
                process.wait()
        if not self._groups:
            self._process = None
            return
        process = self._process = self._start()
        assert process.stdin is not None
        os.write(process.stdin.fileno(), b"".join(b"+%d\n" % group for group in self._groups))

    @staticmethod
    def _start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid())],
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


def _listen(parent: int) -> set[int]:
    """Follow what the parent names, until it is done or dead. Returns the groups that are left."""
    groups: set[int] = set()
    poll = select.poll()
    poll.register(0, select.POLLIN)
    wait_ms: float | None = _LOOK * 1000
    if hasattr(os, "pidfd_open"):
        try:
            poll.register(os.pidfd_open(parent), select.POLLIN)
            wait_ms = None
        except OSError:  # it is dead already, or the kernel is too old for this: looking will tell
            pass
    rest, over = b"", False
    while not over:
        over = os.getppid() != parent
        ready = dict(poll.poll(0 if over else wait_ms))
        if 0 in ready:
            data = os.read(0, 65536)
            over = over or not data
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line == b".":
                    return groups
                (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
    return groups


def _main() -> None:
    groups = _listen(int(sys.argv[1]))
    alive = {group for group in groups if kill_group(group, signal.SIGTERM)}
    deadline = time.monotonic() + GRACE
    while alive and time.monotonic() < deadline:
        time.sleep(0.02)
        alive = {group for group in alive if kill_group(group, 0)}
    for group in alive:
        kill_group(group, signal.SIGKILL)


if __name__ == "__main__":
    _main()
