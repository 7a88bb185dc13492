"""A small process that ends what its parent started, should the parent die without doing so.

No code of ours runs when a process gets SIGKILL, or SIGTERM without a handler. So there is a guard beside it: this
file, run by a bare interpreter. When its parent dies, it sends SIGTERM to all that the parent had started, SIGKILL
after a grace period, and exits. It knows what that is in two ways:

- Process groups (executables, pool workers) are named to it through a pipe: a line `+PGID` names a group, `-PGID`
  takes it back. `+pPID:START` names a process alone, by its number and when it started, `+gPGID:START` the group that
  such a process leads, and `+eNAME=VALUE` every process that has this variable in its environment.
- A parent may die between the start of a process and its naming; and what it started may leave its group. So every
  process that is started carries a mark in its environment, which its descendants inherit, and which is searched for
  where there is a /proc, and by psutil elsewhere.

A parent that ends in good order has unnamed all groups, and ends the guard by a line `.`; the guard then ends what has
left its group, if there is any, and nothing else.

What daemonizes and forgets its environment is out of reach of both: for that there is `rhapsody.worker.subreaper`.

The pipe alone would not show the parent's end: whatever the parent forks (a pool of `multiprocessing`, say) holds
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
from collections.abc import Callable, Mapping
from typing import Final

GRACE: Final = 1.0  # seconds from SIGTERM to SIGKILL
MARK: Final = b"RHAPSODY_GUARD"  # the variable
HAS_PROC: Final = os.path.isdir("/proc")  # noqa: PTH112  # pathlib is slow to import
_BARE: Final = ("-I", "-S") if HAS_PROC else ("-I",)  # elsewhere the guard needs psutil
_POLL: Final = 0.2  # seconds between two polls of the parent, where no descriptor shows its end
_PAUSE: Final = 0.02  # seconds from one read of the pipe to the next: each wakes this process, beside short executables


class Guard:
    """The parent's side. The process is started with the first group, and ended by `close`. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._named: set[bytes] = set()
        self._owner = os.getpid()
        self._mark = _new_mark()

    @property
    def is_up(self) -> bool:
        """Whether its process was started and has not been ended."""
        return self._process is not None

    def environment(self) -> dict[bytes, bytes]:
        """Return the environment for a process that is about to be started: this process's own, marked.

        Raises:
            OSError: the guard cannot be started.
        """
        with self._lock:
            self._own()
            if self._process is None:
                self._process = self._start()
            return {**_environ(), MARK: self._mark}

    def watch(self, group: int) -> None:
        """Have the process group ended if this process dies.

        Raises:
            OSError: the guard cannot be started.
        """
        self.name(b"%d" % group)

    def unwatch(self, group: int) -> None:
        """Take a group back, once it has ended."""
        self.unname(b"%d" % group)

    def name(self, what: bytes) -> None:
        """Have ended what a line of the pipe names, if this process dies.

        Raises:
            OSError: the guard cannot be started.
        """
        with self._lock:
            self._own()
            self._named.add(what)
            self._send(b"+%b\n" % what)

    def unname(self, what: bytes) -> None:
        """Take back what a line of the pipe names."""
        with self._lock:
            if what in self._named and self._owner == os.getpid():
                self._named.discard(what)
                self._send(b"-%b\n" % what)

    def close(self) -> None:
        """End the guard. What is still named, or has left its group, is ended by it first. May block for seconds."""
        with self._lock:
            process, self._process = self._process, None
            self._named.clear()
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
            self._process, self._named, self._owner, self._mark = None, set(), os.getpid(), _new_mark()

    def _send(self, line: bytes) -> None:
        process = self._process
        if process is not None:
            assert process.stdin is not None
            try:
                os.write(process.stdin.fileno(), line)  # shorter than PIPE_BUF: written whole
                return
            except BrokenPipeError:  # somebody has killed it: another takes its place
                process.stdin.close()
                process.wait()
        if not self._named:
            self._process = None
            return
        process = self._process = self._start()
        assert process.stdin is not None
        os.write(process.stdin.fileno(), b"".join(b"+%b\n" % what for what in self._named))

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, *_BARE, __file__, str(os.getpid()), self._mark.decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={name: value for name, value in os.environb.items() if name != MARK},  # it is not for others to end
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
    because the process is gone. Then only a search shows it.
    """
    if sys.platform == "linux":
        try:
            return os.pidfd_open(pid)
        except OSError:
            pass
    return None


def _listen(parent: int) -> tuple[set[bytes], bool]:
    """Follow what the parent names, until it ends. Returns what is named then, and whether it ended in order."""
    named: set[bytes] = set()
    poll, death = select.poll(), select.poll()
    poll.register(0, select.POLLIN)
    wait_ms: float | None = _POLL * 1000
    fd = death_of(parent)
    if fd is not None:  # otherwise the search will show
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
                    return named, True
                (named.add if line[:1] == b"+" else named.discard)(line[1:])
            if not over:
                death.poll(_PAUSE * 1000)
    return named, False


def _new_mark() -> bytes:
    return f"{os.getpid()}.{os.urandom(8).hex()}".encode()


def name_of(pid: int, group: bool) -> bytes | None:
    """Return the line that names a process, or the group that it leads; None where it has ended.

    Its number alone would name another process once it has ended.
    """
    start = _start_of(pid)
    return b"%b%d:%b" % (b"g" if group else b"p", pid, start) if start else None


def _start_of(pid: int) -> bytes:
    """Return when a process started, as the system says it; empty where there is no such process."""
    if not HAS_PROC:
        import psutil

        try:
            return b"%.2f" % psutil.Process(pid).create_time()
        except psutil.Error:
            return b""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123  # pathlib is slow to import
            return stat.read().rpartition(b")")[2].split()[19]
    except (OSError, IndexError):  # it has ended
        return b""


def _find(named: set[bytes], mark: str) -> set[int]:
    """Return what is alive of all that is named or carries the mark; a negative number is a process group."""
    found: set[int] = set()
    groups: set[int] = set()
    for what in named:
        if what[:1] == b"e":
            found |= _marked(what[1:])
        elif what[:1] == b"p":
            pid, _, start = what[1:].partition(b":")
            if _start_of(int(pid)) == start:
                found.add(int(pid))
        elif what[:1] == b"g":
            pid, _, start = what[1:].partition(b":")
            if _start_of(int(pid)) in (start, b""):  # its leader may have ended before the rest
                groups.add(int(pid))
        else:
            groups.add(int(what))
    found |= _marked(b"%b=%b" % (MARK, mark.encode()))
    return {-group for group in groups if kill_group(group, 0)} | (found - groups - {os.getpid()})


def _marked(wanted: bytes) -> set[int]:
    """Return the processes that have a variable in their environment, given as NAME=VALUE."""
    if not HAS_PROC:
        return _marked_by_psutil(wanted)
    name, _, value = wanted.partition(b"=")
    entries = os.listdir("/proc")  # noqa: PTH208  # pathlib is slow to import
    return {int(entry) for entry in entries if entry.isdigit() and variable_of(int(entry), name) == value}


def variable_of(pid: int, name: bytes) -> bytes | None:
    """Return a variable of a process's environment as it was started; None where it has none, or there is no /proc."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:  # noqa: PTH123  # as above
            found = (b"\0" + environ.read()).partition(b"\0%b=" % name)
    except OSError:  # it has ended, or belongs to another user
        return None
    return found[2].partition(b"\0")[0] if found[1] else None


def _marked_by_psutil(wanted: bytes) -> set[int]:
    import psutil

    name, _, value = os.fsdecode(wanted).partition("=")
    found = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(name) == value:
                found.add(process.pid)
        except (psutil.Error, OSError):  # as above
            continue
    return found


def end_all(find: Callable[[], set[int]], at_once: bool, limit: float) -> None:
    """End processes: SIGTERM to each once, SIGKILL to those left after the grace period.

    Args:
        find: returns those that are alive; a negative number is a process group.
        at_once: return when there is none. Otherwise it searches for the whole grace period: a process that was about
            to start cannot be found for a moment.
        limit: seconds in which SIGKILL has to do it.
    """
    warned: set[int] = set()
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline:
        alive = find()
        if at_once and not alive:
            return
        for process in alive - warned:
            _kill(process, signal.SIGTERM)
        warned |= alive
        time.sleep(0.05)
    while time.monotonic() < deadline + limit and (alive := find()):
        for process in alive:
            _kill(process, signal.SIGKILL)
        time.sleep(0.05)


def _kill(process: int, signum: int) -> None:
    try:
        os.kill(process, signum)
    except (ProcessLookupError, PermissionError):  # it has ended, or took other rights
        pass


def _main() -> None:
    named, in_order = _listen(int(sys.argv[1]))
    mark = sys.argv[2]
    end_all(lambda: _find(named, mark), at_once=in_order, limit=GRACE)


if __name__ == "__main__":
    _main()
