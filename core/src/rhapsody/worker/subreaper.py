"""The guard's mode for what daemonizes: it adopts what is orphaned below it, and ends it by the guard's own rule."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final

from rhapsody.worker.guard_process import HAS_PROC, end_all, kill_group, variable_of

_CHECK: Final = 0.2  # seconds between two checks of what is alive
_ENDS: Final = 10.0  # seconds that descendants have to end on SIGKILL
_PR_SET_CHILD_SUBREAPER: Final = 36


class Subreaper:
    """The guard of processes that daemonize: it adopts what is orphaned below it, and ends all of it.

    However often they fork, its descendants stay within reach (prctl(2), Linux). Make it in a process of its own. `run`
    is all that a command needs; a process with a loop of its own calls `reap` now and then and `end` at its end.
    """

    def __init__(self) -> None:
        import ctypes  # costs every worker some milliseconds otherwise

        is_linux = sys.platform.startswith("linux")
        self._adopts = is_linux and ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        self._is_to_end = False
        self._strangers: set[int] = set()  # children that are of no job

    def run(self, command: Sequence[str], *, owner: int, lifeline: int, grace: float, job: str | None = None) -> None:
        """Run a command to its end, and end all that it left. Its standard input and output are the command's alone.

        Args:
            command: what to run.
            owner: number of the process that started this one; when it dies, the command gets SIGTERM.
            lifeline: the reading end of a pipe whose other end the owner holds. Closed, the owner is gone; a byte
                means that there is no time left.
            grace: seconds that the command has then.
            job: a variable that has the same value in all processes of one job below. What a job leaves is ended, by
                SIGKILL, once all of its processes that were not orphaned have ended. None: with the command.
        """
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)
        child = subprocess.Popen(command)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        try:
            self._follow(child, owner, lifeline, grace, os.fsencode(job) if job is not None else None)
        finally:
            self.end()
            child.returncode = 0  # it was reaped by number, together with all the others

    def reap(self) -> dict[int, int]:
        """Collect children that have ended, adopted ones too. Returns the exit code of each; negative, the signal."""
        reaped: dict[int, int] = {}
        with contextlib.suppress(ChildProcessError):  # no child at all
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                reaped[ended[0]] = os.waitstatus_to_exitcode(ended[1])
        return reaped

    def end(self) -> None:
        """End all descendants: SIGTERM, and SIGKILL a second later."""
        if not self._adopts:  # its process group is what can be found of them
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            kill_group(os.getpgrp(), signal.SIGTERM)
        end_all(lambda: set(descendants(os.getpid())) - self.reap().keys(), at_once=True, limit=_ENDS)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._is_to_end = True

    def _follow(
        self, child: subprocess.Popen[bytes], owner: int, lifeline: int, grace: float, job: bytes | None
    ) -> None:
        poll = select.poll()
        poll.register(lifeline, select.POLLIN)
        deadline: float | None = None
        while child.pid not in self.reap():
            is_to_end = self._is_to_end or os.getppid() != owner
            if poll.poll(_CHECK * 1000):
                if os.read(lifeline, 1):
                    return
                poll.unregister(lifeline)
                is_to_end = True
            if is_to_end and deadline is None:
                deadline = time.monotonic() + grace
                os.kill(child.pid, signal.SIGTERM)
            if deadline is not None and time.monotonic() > deadline:
                return
            if job is not None:
                self._end_leftovers(child.pid, job)

    def _end_leftovers(self, command: int, job: bytes) -> None:
        """End the adopted processes of jobs of which nothing else runs."""
        adopted = _children() - {command}
        self._strangers &= adopted
        own = variable_of(os.getpid(), job)  # where this process is a part of a job itself
        jobs = {pid: value for pid in adopted - self._strangers if (value := variable_of(pid, job)) not in (None, own)}
        self._strangers |= adopted - jobs.keys()  # daemons: few, and each is read once
        if not jobs:
            return
        others = [below for pid in _children() - jobs.keys() for below in descendants(pid)]
        running = {variable_of(pid, job) for pid in others}
        for pid, value in jobs.items():
            if value not in running:
                for left in (*descendants(pid), pid):
                    with contextlib.suppress(ProcessLookupError, PermissionError):  # as `end_all` does
                        os.kill(left, signal.SIGKILL)


def _children() -> set[int]:
    """Return the children of this process, of its main thread; none where the kernel does not list them."""
    try:
        return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}
    except OSError:
        return set()


def descendants(root: int) -> list[int]:
    """Return the living descendants of a process: from /proc, or else from psutil."""
    if not HAS_PROC:
        return _descendants_by_psutil(root)
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = entry.read_text(errors="replace").rpartition(")")[2].split()[:2]
        except OSError:  # it has ended
            continue
        if state != "Z":
            children.setdefault(int(parent), []).append(int(entry.parent.name))
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _descendants_by_psutil(root: int) -> list[int]:
    import psutil

    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(root).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended
                if child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child.pid)
    return found
