"""A small process that ends what its parent started, should the parent die without doing so.

No code of ours runs when a process gets SIGKILL, or SIGTERM without a handler. So there is a guard beside it: this
file, run by a bare interpreter. When its parent dies, it sends SIGTERM to all that the parent had started, SIGKILL
after a grace period, and exits. It knows what that is in two ways:

- Process groups (executables, pool workers) are named to it through a pipe: a line `+PGID` names a group, `-PGID`
  takes it back.
- A parent may die between the start of a process and its naming; and what it started may leave its group. So every
  process that is started carries a mark in its environment, which its descendants inherit, and which is looked for
  where there is a /proc.

A parent that ends in good order has unnamed all groups, and ends the guard by a line `.`; the guard then ends what has
left its group, if there is any, and nothing else.

The pipe alone would not tell of the parent's death: whatever the parent forks (a pool of `multiprocessing`, say) holds
the pipe open too, and may live on. So the guard watches the parent itself.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Final

GRACE: Final = 1.0  # seconds from SIGTERM to SIGKILL
_MARK: Final = b"RHAPSODY_GUARD"  # the variable
_LOOK: Final = 0.2  # seconds between two looks for the parent, where no descriptor tells of its death
_PAUSE: Final = 0.02  # seconds from a look into the pipe to the next: each wakes this process, beside short programs


class Guard:
    """The parent's side. The process is started with the first group, and ended by `close`. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._groups: set[int] = set()
        self._owner = os.getpid()
        self._mark = _new_mark()

    def environment(self) -> dict[bytes, bytes]:
        """Return the environment for a process that is about to be started: this process's own, marked.

        Raises:
            OSError: the guard cannot be started.
        """
        with self._lock:
            self._own()
            if self._process is None:
                self._process = self._start()
            return {**_environ(), _MARK: self._mark}

    def watch(self, group: int) -> None:
        """Have the process group ended if this process dies.

        Raises:
            OSError: the guard cannot be started.
        """
        with self._lock:
            self._own()
            self._groups.add(group)
            self._tell(b"+%d\n" % group)

    def unwatch(self, group: int) -> None:
        """Take a group back, once it has ended."""
        with self._lock:
            if group in self._groups and self._owner == os.getpid():
                self._groups.discard(group)
                self._tell(b"-%d\n" % group)

    def close(self) -> None:
        """End the guard. What is still named, or has left its group, is ended by it first. May block for seconds."""
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
                process.wait(2 * GRACE + 3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _own(self) -> None:
        if self._owner != os.getpid():  # forked: the guard and its groups are those of the process we come from
            self._process, self._groups, self._owner, self._mark = None, set(), os.getpid(), _new_mark()

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

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), self._mark.decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={name: value for name, value in os.environb.items() if name != _MARK},  # it is not for others to end
            start_new_session=True,  # out of reach of the terminal's Ctrl-C
        )


def _environ() -> Mapping[bytes, bytes]:
    """Return the environment of this process, to be copied."""
    # What os.environb wraps, where it is as expected: copying the wrapper calls three functions for each variable.
    wrapped = getattr(os.environb, "_data", None)
    return wrapped if type(wrapped) is dict else os.environb


def kill_group(group: int, signum: int) -> bool:
    """Send a signal to a process group. Returns whether there was one to send it to."""
    try:
        os.killpg(group, signum)
    except ProcessLookupError:
        return False
    except PermissionError:  # only zombies, or processes that took other rights: nothing that we may end
        return False
    return True


def death_of(pid: int) -> int | None:
    """Return a descriptor that can be read once the process has ended, to be closed by the caller.

    None where there is no such thing: with an old kernel, in a container that forbids it, with no descriptor left, or
    because the process is gone. Then one has to look.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _listen(parent: int) -> tuple[set[int], bool]:
    """Follow what the parent names, until it ends. Returns the groups that are left, and whether it ended in order."""
    groups: set[int] = set()
    poll, death = select.poll(), select.poll()
    poll.register(0, select.POLLIN)
    wait_ms: float | None = _LOOK * 1000
    fd = death_of(parent)
    if fd is not None:  # otherwise looking will tell
        poll.register(fd, select.POLLIN)
        death.register(fd, select.POLLIN)
        wait_ms = None
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
                    return groups, True
                (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
            if not over:
                death.poll(_PAUSE * 1000)
    return groups, False


def _new_mark() -> bytes:
    return f"{os.getpid()}.{os.urandom(8).hex()}".encode()


def _marked(mark: str) -> set[int]:
    """Return the processes that carry the mark."""
    wanted = b"%s=%s" % (_MARK, mark.encode())
    found = set()
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():  # noqa: PTH112, PTH208  # pathlib is slow to import
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/environ", "rb") as environ:  # noqa: PTH123  # as above
                    if wanted in environ.read().split(b"\0"):
                        found.add(int(entry))
            except OSError:  # it has ended, or belongs to another user
                continue
    return found


def _end(groups: set[int], mark: str, in_order: bool) -> None:
    """End groups and what carries the mark: SIGTERM to each once, SIGKILL to those left after the grace period."""
    told: set[int] = set()
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline:
        processes = _marked(mark)
        alive = {group for group in groups if kill_group(group, 0)}
        if in_order and not processes and not alive:
            return  # otherwise it looks for the whole time: a process that was about to start has no mark for a moment
        for group in alive - told:
            kill_group(group, signal.SIGTERM)
        for process in processes - groups - told:
            _kill(process, signal.SIGTERM)
        told |= groups | processes
        time.sleep(0.05)
    left = True
    while left and time.monotonic() < deadline + GRACE:
        left = bool({group for group in groups if kill_group(group, signal.SIGKILL)})
        for process in _marked(mark):
            _kill(process, signal.SIGKILL)
            left = True
        time.sleep(0.05)


def _kill(process: int, signum: int) -> None:
    try:
        os.kill(process, signum)
    except (ProcessLookupError, PermissionError):  # it has ended, or took other rights
        pass


def _main() -> None:
    groups, in_order = _listen(int(sys.argv[1]))
    _end(groups, sys.argv[2], in_order)


if __name__ == "__main__":
    _main()
