"""What the pilot holds, and what its reports mean for the tasks. No engine and no threads of its own."""

from __future__ import annotations

import re
import shutil
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import attrs
from rhapsody.api import ComputeTask, TaskState
from rhapsody.errors import TaskExecutionError, WorkerLostError
from rhapsody.plugin import CancelResult, Event, Outcome, Returned, Started, TaskBatch

from . import unit as unit_files

EXECUTING: Final = "AGENT_EXECUTING"
STATE_OF: Final[Mapping[str, TaskState]] = {  # RADICAL-Pilot's states that mean something to a task
    EXECUTING: TaskState.RUNNING,
    "DONE": TaskState.DONE,
    "FAILED": TaskState.FAILED,
    "CANCELED": TaskState.CANCELED,
}
KEEP: Final = 8 * 2**20  # bytes kept of the beginning, and as many of the end, of each stream held in memory
_TAIL: Final = 4096
_NOT_STARTED: Final = (126, 127)  # what a shell returns for a program that it cannot run, or cannot find
_SIGNAL_BASE: Final = 128  # what a shell adds to the number of the signal that ended a program


def _by_uid(tasks: Iterable[ComputeTask]) -> OrderedDict[str, ComputeTask]:
    return OrderedDict((task.uid, task) for task in tasks)


@attrs.define(eq=False)
class Held:
    """One RADICAL-Pilot task in the pilot's hands: an executable, or a unit of functions.

    Attributes:
        uid: its name in RADICAL-Pilot.
        batch: what it came in.
        open: tasks that have not ended, by uid, in the order in which they run. Ordered, since a dict from which many
            were taken is slow to find its first.
        folder: of a unit: where its files are. None for an executable.
        running: uid of the task that began last, as far as is known. None: none has begun.
        canceled: uids of tasks that were asked to stop.
        read: bytes of the unit's frames that were read.
    """

    uid: str
    batch: TaskBatch
    open: OrderedDict[str, ComputeTask] = attrs.field(converter=_by_uid)
    folder: Path | None = None
    running: str | None = None
    canceled: set[str] = attrs.field(factory=set)
    read: int = 0

    def begin(self, at: float, ran_on: str | None = None) -> list[Event]:
        """Note that the first open task runs now, if there is one."""
        self.running = next(iter(self.open), None)
        return [] if self.running is None else [Started(self.running, at, ran_on)]


class Ledger:
    """Turns what RADICAL-Pilot reports into what the session understands. Safe from any thread.

    Args:
        captured: the folder for the output of tasks with `capture_stdio`.
    """

    def __init__(self, captured: Callable[[], Path]) -> None:
        self._captured = captured
        self._lock = threading.Lock()
        self._held: dict[str, Held] = {}
        self._of: dict[str, Held] = {}  # by the uid of the task
        self._running_units: dict[str, Held] = {}

    def add(self, entries: Iterable[Held]) -> None:
        """Hold what is about to be submitted."""
        with self._lock:
            for held in entries:
                self._held[held.uid] = held
                self._of.update(dict.fromkeys(held.open, held))

    def cancel(self, tasks: Sequence[ComputeTask]) -> tuple[dict[str, CancelResult], list[str], list[Event]]:
        """Find out how to stop tasks without harm to others. What is known of a unit may be old by some milliseconds.

        Returns: what becomes of each task that is held; what RADICAL-Pilot is to cancel, by uid; and what has happened.
        """
        results: dict[str, CancelResult] = {}
        ending: list[str] = []
        events: list[Event] = []
        with self._lock:
            concerned: dict[str, Held] = {}
            for task in tasks:
                held = self._of.get(task.uid)
                if held is None:
                    continue
                concerned[held.uid] = held
                held.canceled.add(task.uid)
                is_running = task.uid == held.running
                results[task.uid] = CancelResult.STOPPED if is_running else CancelResult.NEVER_STARTED
            for held in concerned.values():
                if held.folder is not None and unit_files.recall(held.folder):
                    events += self._end(held, TaskState.CANCELED, time.time(), {})
                    ending.append(held.uid)
                elif held.canceled.issuperset(held.open):
                    ending.append(held.uid)
                else:  # the unit itself knows what runs
                    assert held.folder is not None
                    unit_files.write_cancel(held.folder, held.canceled)
        return results, ending, events

    def halted(self) -> list[str]:
        """Return the units that have halted at a canceled task since this was last asked, for RADICAL-Pilot to end."""
        with self._lock:
            return [
                held.uid
                for held in self._running_units.values()
                if held.canceled and held.folder is not None and unit_files.take_halt(held.folder)
            ]

    @property
    def watches(self) -> bool:
        """Whether units run, whose frames are to be looked at."""
        return bool(self._running_units)

    def look(self) -> list[Event]:
        """Read what the running units have written."""
        with self._lock:
            return [event for held in list(self._running_units.values()) for event in self._read(held)]

    def apply(self, changes: Sequence[Sequence[Any]], at: float) -> list[Event]:
        """Translate changes of state.

        Args:
            changes: `(uid, RADICAL-Pilot's state, details)`.
            at: when they were reported, in seconds since the epoch.
        """
        events: list[Event] = []
        with self._lock:
            for uid, state, details in changes:
                held = self._held.get(uid)
                if held is None or state not in STATE_OF:
                    continue
                if state == EXECUTING:
                    events += self._executing(held, at, details)
                else:
                    events += self._end(held, STATE_OF[state], at, details)
        return events

    def _executing(self, held: Held, at: float, details: Mapping[str, Any]) -> list[Event]:
        if held.folder is not None:
            self._running_units[held.uid] = held
            return []
        return held.begin(at, details.get("node") or None)

    def _end(self, held: Held, state: TaskState, at: float, details: Mapping[str, Any]) -> list[Event]:
        """Settle what is held, and let go of it."""
        del self._held[held.uid]
        self._running_units.pop(held.uid, None)
        events: list[Event] = (
            [self._end_executable(held, state, at, details)]
            if held.folder is None
            else self._end_unit(held, state, details)
        )
        for uid in held.open:
            self._of.pop(uid, None)
        return events

    # -- units of functions ------------------------------------------------------------------------------------------

    def _read(self, held: Held) -> list[Event]:
        assert held.folder is not None
        try:
            with (held.folder / unit_files.FRAMES).open("rb") as file:
                file.seek(held.read)
                data = file.read()
                written = Path(file.name).stat().st_mtime
        except FileNotFoundError:  # its Python is still starting
            return []
        events: list[Event] = []
        if held.running is None:
            events += held.begin(written)
        read = 0
        for frame, end in unit_files.complete(data):
            read = end
            for outcome in held.batch.decode(frame):
                events.append(outcome)
                self._of.pop(outcome.uid, None)
                held.open.pop(outcome.uid, None)
                if outcome.uid == held.running:
                    events += held.begin(outcome.ended_at or written, outcome.ran_on)
        held.read += read
        return events

    def _end_unit(self, held: Held, state: TaskState, details: Mapping[str, Any]) -> list[Event]:
        """Settle the tasks of a unit that ended: nearly always all of them are settled already."""
        assert held.folder is not None
        events = self._read(held)
        if state is not TaskState.FAILED:  # a unit that failed is kept, for whoever wants to know why
            shutil.rmtree(held.folder, ignore_errors=True)
        back: list[str] = []
        for place, task in enumerate(held.open.values()):
            was_running = state is TaskState.DONE or place == 0
            if held.running is None:  # its Python did not start, and would not elsewhere
                was_running = state is not TaskState.CANCELED
            if task.uid in held.canceled and (state is TaskState.CANCELED or not was_running):
                events.append(Outcome(task.uid, TaskState.CANCELED))
            elif was_running:
                events.append(Outcome(task.uid, TaskState.FAILED, exception=_lost(task, details)))
            else:
                back.append(task.uid)
        if back:
            events.append(Returned(back))
        return events

    # -- executables -------------------------------------------------------------------------------------------------

    def _end_executable(self, held: Held, state: TaskState, at: float, details: Mapping[str, Any]) -> Outcome:
        [task] = held.open.values()
        outcome = Outcome(task.uid, state, ended_at=at, ran_on=details.get("node") or None)
        outcome.exit_code = details.get("exit_code")
        try:
            error_tail = self._output(held.uid, task, outcome, details)
        except OSError as error:  # of this task's files: it is no concern of the others
            error_tail = details.get("stderr") or ""
            if state is TaskState.DONE:
                reason = f"its output cannot be fetched: {error}"
                outcome.state = TaskState.FAILED
                outcome.exception = TaskExecutionError(task.uid, outcome.exit_code, error_tail, reason=reason)
        if state is TaskState.CANCELED:
            if task.uid not in held.canceled:
                outcome.state, outcome.exception = TaskState.FAILED, _not_asked(task, error_tail)
        elif state is TaskState.FAILED:
            outcome.exception = self._why(task, outcome, error_tail, details)
        return outcome

    def _output(self, uid: str, task: ComputeTask, outcome: Outcome, details: Mapping[str, Any]) -> str:
        """Fetch what the program wrote. Returns the end of its standard error."""
        folder = Path(urlsplit(details.get("sandbox", "")).path)
        out, err = folder / f"{uid}.out", folder / f"{uid}.err"
        if not details.get("sandbox") or not (out.exists() and err.exists()):
            # It never started, it removed them, or they are elsewhere: what RADICAL-Pilot kept is all that there is.
            outcome.stdout, outcome.stderr = details.get("stdout"), details.get("stderr")
            return (outcome.stderr or "")[-_TAIL:]
        if task.capture_stdio:
            name = quote(task.uid, safe="")
            captured = [self._captured() / f"{name}{source.suffix}" for source in (out, err)]
            for source, target in zip((out, err), captured, strict=True):
                shutil.move(source, target)
            outcome.stdout_path, outcome.stderr_path = map(str, captured)
            return _read_bounded(captured[1], _TAIL)[-_TAIL:]
        outcome.stdout, outcome.stderr = _read_bounded(out, KEEP), _read_bounded(err, KEEP)
        return outcome.stderr[-_TAIL:]

    def _why(
        self, task: ComputeTask, outcome: Outcome, error_tail: str, details: Mapping[str, Any]
    ) -> TaskExecutionError:
        paths = [path for path in (outcome.stdout_path, outcome.stderr_path) if path]
        code = outcome.exit_code
        reason = ""
        if code is None or code == 0:
            said = details.get("exception") or "it did not say why"
            reason = f"RADICAL-Pilot failed the task: {said}; {details.get('detail', '')}".rstrip("; ")
        elif code in _NOT_STARTED and not task.shell and (line := _shell_says(error_tail, str(task.executable))):
            outcome.exit_code = code = None
            reason = f"could not start {str(task.executable)!r}: {line}"
        elif code > _SIGNAL_BASE and _ended_by_signal(code - _SIGNAL_BASE, error_tail):
            outcome.exit_code = code = _SIGNAL_BASE - code
        return TaskExecutionError(task.uid, code, error_tail, paths, reason)


def _lost(task: ComputeTask, details: Mapping[str, Any]) -> WorkerLostError:
    code = details.get("exit_code")
    ended = f"with exit code {code}" if code is not None else "without an exit code"
    said = details.get("stderr") or ""
    return WorkerLostError(f"task {task.uid}: the process that ran it on the pilot ended {ended}\n{said}".rstrip())


def _not_asked(task: ComputeTask, error_tail: str) -> Exception:
    timeout = (task.backend_options or {}).get("timeout")
    if timeout:
        return TaskExecutionError(task.uid, None, error_tail, reason=f"stopped at its timeout of {timeout:g} seconds")
    return WorkerLostError(f"task {task.uid}: RADICAL-Pilot canceled it, and nobody here had asked for that")


def _shell_says(text: str, executable: str) -> str:
    """Return what the shell said of a program that it could not run; empty if it said nothing."""
    match = re.search(rf"^.*\.sh: line \d+: (?:exec: )?{re.escape(executable)}: (.+)$", text, re.MULTILINE)
    return match.group(1) if match else ""


def _ended_by_signal(number: int, text: str) -> bool:
    """Whether the shell said that a signal ended the program, which may just as well have returned such a number."""
    try:
        name = signal.strsignal(number)
    except ValueError:
        return False
    return bool(name and re.search(rf"\.sh: line \d+: +\d+ {re.escape(name)}", text))


def _read_bounded(path: Path, keep: int) -> str:
    """Read a file as text: all of it, or its beginning and its end."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size <= 2 * keep:
            return file.read().decode("utf-8", "replace")
        head = file.read(keep)
        file.seek(size - keep)
        data = head + b"\n[... %d bytes left out ...]\n" % (size - 2 * keep) + file.read()
    return data.decode("utf-8", "replace")
