"""What a machine lacks for a moment, descriptors or processes say, is waited for; standard library only.

A start that fails for such a lack is tried again when another of the process's executables has ended. One start is
tried again at a time, so that a hundred threads do not compete for the four descriptors that came free.
"""

from __future__ import annotations

import errno
import threading
import time
import warnings
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

_PATIENCE: Final = 1.0  # seconds for a file that is open for writing where nothing runs: a fork holds it for a moment
_CHECK_EVERY: Final = 0.1  # seconds between two checks whether the task was canceled
_SPARE: Final = 1024  # descriptors for the program itself
_EACH: Final = 8  # descriptors that an executable or worker takes, with what its start needs for a moment

_CURES: Final = {
    errno.EMFILE: "this process may have {soft} open files: raise that (`ulimit -n`, to {hard}) or lower max_workers",
    errno.ENFILE: "the machine has no open file left: raise fs.file-max, or lower max_workers",
    errno.EAGAIN: "no more processes may start: raise the limit (`ulimit -u`, or the container's) or lower max_workers",
    errno.ENOMEM: "the machine has no memory left to start a process: lower max_workers",
    errno.ETXTBSY: "an executable's file is still open for writing: close it before its task is submitted",
}


class Starts:
    """Starts executables; those for which the machine lacks something wait until others have ended."""

    def __init__(self) -> None:
        self._turn = threading.Lock()  # of the one start that is tried again
        self._changed = threading.Condition()
        self._trying = 0  # first tries: what they take for a moment comes free
        self._live = 0
        self._ended = 0

    def start(self, begin: Callable[[], T], stopped: Callable[[], bool]) -> T | None:
        """Call `begin` until it does not lack anything. Its caller calls `over` when what it began has ended.

        Args:
            begin: starts an executable.
            stopped: whether the executable is not wanted any more.

        Returns: what `begin` did; None if the executable is not wanted any more.
        Raises: what `begin` did, where it lacks nothing that waiting may bring.
        """
        with self._changed:
            self._trying += 1
        try:
            begun = begin()
        except OSError as error:
            if not is_shortage(error):
                raise
            warn(error)
        else:
            with self._changed:
                self._live += 1
            return begun
        finally:
            with self._changed:
                self._trying -= 1
                self._changed.notify_all()
        while not self._turn.acquire(timeout=_CHECK_EVERY):
            if stopped():
                return None
        try:
            return self._start_again(begin, stopped)
        finally:
            self._turn.release()

    def over(self) -> None:
        """Say that an executable has ended, and that its descriptors are closed."""
        with self._changed:
            self._live -= 1
            self._ended += 1
            self._changed.notify_all()

    def _start_again(self, begin: Callable[[], T], stopped: Callable[[], bool]) -> T | None:
        deadline = time.monotonic() + _PATIENCE
        while not stopped():
            with self._changed:
                ended, others = self._ended, self._live + self._trying
            try:
                begun = begin()
            except OSError as error:
                passes = error.errno == errno.ETXTBSY and time.monotonic() < deadline
                if not is_shortage(error) or not (others or passes):  # nothing runs that could free it
                    raise
                with self._changed:
                    self._changed.wait_for(lambda: self._ended != ended, _CHECK_EVERY)  # noqa: B023  # called at once
                continue
            with self._changed:
                self._live += 1
            return begun
        return None


def is_shortage(error: OSError) -> bool:
    """Whether a start failed for something that the machine lacks for a moment."""
    return error.errno in _CURES


_warned: set[int] = set()


def warn(error: OSError) -> None:
    """Warn of a shortage, once for each kind."""
    if error.errno is None or error.errno in _warned:
        return
    _warned.add(error.errno)
    soft, hard = _open_files()
    cure = _CURES[error.errno].format(soft=soft, hard=hard)
    try:
        warnings.warn(f"tasks wait until others have ended: {cure} ({error})", RuntimeWarning, stacklevel=2)
    except RuntimeWarning:  # where warnings are errors: it is not the task's
        pass


def make_room(count: int) -> None:
    """Raise the soft limit on open files to what this many executables or workers take, where the hard limit allows."""
    try:
        import resource
    except ModuleNotFoundError:  # not a POSIX system
        return
    soft, hard = _open_files()
    wanted = _SPARE + _EACH * count
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):  # the system has a limit of its own, and says so only now
            pass


def _open_files() -> tuple[int, int]:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)
