"""A program that Dragon itself starts: its files, its end, and how its processes are found."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

from rhapsody.errors import TaskExecutionError
from rhapsody.plugin import ComputeTask, Outcome, TaskState

from .options import Launch, launches, output_of

#: Seconds from SIGTERM to SIGKILL for a program that is stopped.
GRACE: Final = 3.0
#: The variable by which the processes of a task are known, however they were started and whoever is their parent.
MARKER: Final = "RHAPSODY_DRAGON_TASK"
_TAIL: Final = 4096
_LOOK_SECONDS: Final = 0.1


class Gate:
    """Holds back a process of this node that was started ahead of its turn: it reads a line of a named pipe first.

    As a context it is gone afterwards. Who waits at it must have been let through, or killed, by then.
    """

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __enter__(self) -> Gate:
        """Make the pipe."""
        os.mkfifo(self.path)
        self._pipe = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)  # both ends, so that neither open waits
        return self

    def open(self) -> None:
        """Let the process through."""
        os.write(self._pipe, b"\n")

    def __exit__(self, *_: object) -> None:
        """Remove the pipe."""
        os.close(self._pipe)
        Path(self.path).unlink(missing_ok=True)


class Program:
    """The files of one executable task, and its outcome.

    Args:
        task: an executable.
        session: uid of the session.
        folder: where its files are: the session's for what is captured, a temporary one for the rest.
    """

    def __init__(self, task: ComputeTask, session: str, folder: Path) -> None:
        self.task = task
        self.marker = marker_of(session, task.uid)
        name = quote(task.uid, safe="")
        self._out, self._err, self._in = (folder / f"{name}.{kind}" for kind in ("out", "err", "in"))
        self._paths = (str(self._out), str(self._err)) if task.capture_stdio else (None, None)

    def plan(self, folder: str, gate: Gate | None = None) -> list[Launch]:
        """Write what it reads, and return the processes to start; they run in `folder` where the task names none.

        With a gate they wait at it first.

        Raises:
            FileNotFoundError: its program, or the folder in which it should run, is not there.
        """
        stdin = "/dev/null"
        if self.task.stdin is not None:
            stdin = str(self._in)
            self._in.write_bytes(self.task.stdin.encode() if isinstance(self.task.stdin, str) else self.task.stdin)
        for file in (self._out, self._err):
            file.unlink(missing_ok=True)  # Dragon appends
        return launches(
            self.task,
            folder,
            stdin=stdin,
            stdout=str(self._out),
            stderr=str(self._err),
            marker=self.marker,
            gate=None if gate is None else gate.path,
        )

    def has_begun(self) -> bool:
        """Whether Dragon has started it: then there is a file for its output."""
        return self._out.exists()

    def outcome(self, code: int, started_at: float | None, ran_on: str | None) -> Outcome:
        """Read what it wrote, and remove what was not captured for the user."""
        captured = self.task.capture_stdio
        outcome = Outcome(
            self.task.uid,
            TaskState.DONE if code == 0 else TaskState.FAILED,
            exit_code=code,
            stdout=None if captured else output_of(self._out),
            stderr=None if captured else output_of(self._err),
            stdout_path=self._paths[0],
            stderr_path=self._paths[1],
            started_at=started_at,
            ended_at=time.time(),
            ran_on=ran_on,
        )
        if code != 0:
            tail = (output_of(self._err) if captured else outcome.stderr or "")[-_TAIL:]
            files = [path for path in self._paths if path]
            outcome.exception = TaskExecutionError(self.task.uid, code, tail, files)
        self.remove()
        return outcome

    def remove(self) -> None:
        """Remove what was not captured for the user."""
        files = [] if self.task.stdin is None else [self._in]
        files += [] if self.task.capture_stdio else [self._out, self._err]
        for file in files:
            with contextlib.suppress(OSError):  # it was never there, or cannot be: a name may be too long for a file
                file.unlink()


def marker_of(session: str, uid: str) -> dict[str, str]:
    """The variable that all processes of a task have in their environment."""
    return {MARKER: f"{session}/{quote(uid, safe='')}"}


def processes_of(marker: dict[str, str]) -> list[int]:
    """The processes of a task on this node: those that it started, and whatever they started."""
    return [pid for pid, task in _marked() if task == marker[MARKER]]


def marked_tasks() -> set[str]:
    """The tasks that have processes on this node, as their markers name them."""
    return {task for _, task in _marked()}


def _marked() -> Iterator[tuple[int, str]]:
    """Yield the processes of this node that have a marker, and what it says."""
    start = f"{MARKER}=".encode()
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names are what is wanted
        if entry.isdigit():
            try:
                variables = Path("/proc", entry, "environ").read_bytes().split(b"\0")
            except OSError:  # it has ended, or is another user's
                continue
            for variable in variables:
                if variable.startswith(start):
                    yield int(entry), variable[len(start) :].decode(errors="replace")
                    break


def root_of(marker: dict[str, str]) -> int | None:
    """The process of a task that Dragon started itself: the one whose parent is not of the task."""
    pids = processes_of(marker)
    for pid in pids:
        try:
            stat = Path("/proc", str(pid), "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        if int(stat.rpartition(")")[2].split()[1]) not in pids:
            return pid
    return None


def signal_task(marker: dict[str, str], number: signal.Signals) -> int:
    """Send a signal to the processes of a task on this node; returns to how many."""
    count = 0
    for pid in processes_of(marker):
        try:
            os.kill(pid, number)
            count += 1
        except ProcessLookupError:  # it has ended meanwhile
            continue
    return count


def wait_for_none(marker: dict[str, str], seconds: float) -> bool:
    """Wait until a task has no process left on this node; returns whether it is so."""
    until = time.monotonic() + seconds
    while processes_of(marker):
        if time.monotonic() > until:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def stop_task(marker: dict[str, str], first: signal.Signals, over: Callable[[float], bool]) -> None:
    """SIGTERM, or another signal, to a task's processes on this node, and SIGKILL after a grace to what is left.

    `over(seconds)` waits for the task's end, and returns whether it has come.
    """
    if signal_task(marker, first):
        over(GRACE)
    signal_task(marker, signal.SIGKILL)
