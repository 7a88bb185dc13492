"""Records what the pilot holds, and translates its reports to events. No engine and no threads of its own."""

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
from urllib.parse import urlsplit

import attrs
from rhapsody.api import ComputeTask, TaskState
from rhapsody.errors import TaskExecutionError, WorkerLostError
from rhapsody.plugin import CancelResult, Event, Outcome, Started, TaskBatch, command_of, settle_lost
from rhapsody.worker import whole_frames

from . import batch_main

EXECUTING: Final = "AGENT_EXECUTING"
STATE_OF: Final[Mapping[str, TaskState]] = {  # of RADICAL-Pilot's states; the others change nothing for a task
    EXECUTING: TaskState.RUNNING,
    "DONE": TaskState.DONE,
    "FAILED": TaskState.FAILED,
    "CANCELED": TaskState.CANCELED,
}
KEEP: Final = 8 * 2**20  # bytes kept of the beginning, and as many of the end, of each stream held in memory
_TAIL: Final = 4096
_NOT_STARTED: Final = (126, 127)  # what a shell returns for an executable that it cannot run, or cannot find
_SIGNAL_BASE: Final = 128  # what a shell adds to the number of the signal that ended an executable


def _by_uid(tasks: Iterable[ComputeTask]) -> OrderedDict[str, ComputeTask]:
    return OrderedDict((task.uid, task) for task in tasks)


@attrs.define(eq=False)
class Held:
    """One RADICAL-Pilot task that the pilot holds: an executable, or a batch of functions.

    Attributes:
        uid: its name in RADICAL-Pilot.
        batch: the batch that it came in.
        open: tasks that have not ended, by uid, in the order in which they run. Ordered, since a dict from which many
            were taken is slow to find its first.
        folder: of a batch of functions: where its files are. None for an executable.
        running: uid of the task that began last, as far as is known. None: none has begun.
        canceled: uids of tasks that were asked to stop.
        read: bytes of the batch's frames that were read.
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
    """Translates RADICAL-Pilot's reports to events of the session. Safe from any thread.

    Args:
        captured: the folder for the output of tasks with `capture_stdio`.
    """

    def __init__(self, captured: Callable[[], Path]) -> None:
        self._captured = captured
        self._lock = threading.Lock()
        self._held: dict[str, Held] = {}
        self._of: dict[str, Held] = {}  # by the uid of the task
        self._running_batches: dict[str, Held] = {}
        self._other_cores: set[str] = set()  # that `take_other_cores` has not returned yet

    def add(self, entries: Iterable[Held]) -> None:
        """Hold what is about to be submitted."""
        with self._lock:
            for held in entries:
                self._held[held.uid] = held
                self._of.update(dict.fromkeys(held.open, held))

    def cancel(self, tasks: Sequence[ComputeTask]) -> tuple[dict[str, CancelResult], list[str], list[Event]]:
        """Decide how to stop tasks without harm to others. The record of a batch may be old by some milliseconds.

        Returns: the result for each task that is held; uids that RADICAL-Pilot is to cancel; and events.
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
                if held.folder is not None and batch_main.recall(held.folder):
                    events += self._end(held, TaskState.CANCELED, time.time(), {})
                    ending.append(held.uid)
                elif held.canceled.issuperset(held.open):
                    ending.append(held.uid)
                else:  # only the batch's process knows what runs
                    assert held.folder is not None
                    batch_main.write_cancel(held.folder, held.canceled)
        return results, ending, events

    def take_halted(self) -> list[str]:
        """Return, once, the uids of batches that have halted at a canceled task, for RADICAL-Pilot to end."""
        with self._lock:
            return [
                held.uid
                for held in self._running_batches.values()
                if held.canceled and held.folder is not None and batch_main.take_halt(held.folder)
            ]

    def take_other_cores(self) -> set[str]:
        """Return, once, the versions of rhapsody-core that functions ran with and that are not the session's."""
        with self._lock:
            cores, self._other_cores = self._other_cores, set()
        return cores

    @property
    def has_running_batches(self) -> bool:
        """Whether batches run, whose frames are to be read."""
        return bool(self._running_batches)

    def read_frames(self) -> list[Event]:
        """Read what the running batches have written."""
        with self._lock:
            return [event for held in list(self._running_batches.values()) for event in self._read(held)]

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
            self._running_batches[held.uid] = held
            return []
        return held.begin(at, details.get("node") or None)

    def _end(self, held: Held, state: TaskState, at: float, details: Mapping[str, Any]) -> list[Event]:
        """Settle the tasks of an entry, and remove it."""
        del self._held[held.uid]
        self._running_batches.pop(held.uid, None)
        events: list[Event] = (
            [self._end_executable(held, state, at, details)]
            if held.folder is None
            else self._end_batch(held, state, details)
        )
        for uid in held.open:
            self._of.pop(uid, None)
        return events

    # -- batches of functions ----------------------------------------------------------------------------------------

    def _read(self, held: Held) -> list[Event]:
        assert held.folder is not None
        try:
            with (held.folder / batch_main.FRAMES).open("rb") as file:
                file.seek(held.read)
                data = file.read()
                written = Path(file.name).stat().st_mtime
        except FileNotFoundError:  # its Python is still starting
            return []
        events: list[Event] = []
        if held.running is None:
            events += held.begin(written)
        whole = whole_frames(data)  # the last one may still be being written
        held.read += whole
        for outcome in held.batch.decode(data[:whole]):
            events.append(outcome)
            self._of.pop(outcome.uid, None)
            held.open.pop(outcome.uid, None)
            if outcome.uid == held.running:
                events += held.begin(outcome.ended_at or written, outcome.ran_on)
        return events

    def _end_batch(self, held: Held, state: TaskState, details: Mapping[str, Any]) -> list[Event]:
        """Settle the tasks of a batch that ended: nearly always all of them are settled already."""
        assert held.folder is not None
        events = self._read(held)
        if core := batch_main.read_other_core(held.folder):
            self._other_cores.add(core)
        if state is not TaskState.FAILED:  # the files of a failed batch stay, to be examined
            shutil.rmtree(held.folder, ignore_errors=True)
        tasks = list(held.open)
        begun = tasks[:1]
        if state is TaskState.DONE or (held.running is None and state is TaskState.FAILED):
            begun = tasks  # it did not report them; or its Python did not start, and would not elsewhere
        elif held.running is None:
            begun = []
        ended = {task.uid for task in held.batch.shipped if task.uid not in held.open}
        return events + settle_lost(held.batch, ended, begun, held.canceled, why=_why_lost(details))

    # -- executables -------------------------------------------------------------------------------------------------

    def _end_executable(self, held: Held, state: TaskState, at: float, details: Mapping[str, Any]) -> Outcome:
        [task] = held.open.values()
        outcome = Outcome(task.uid, state, ended_at=at, ran_on=details.get("node") or None)
        outcome.exit_code = details.get("exit_code")
        try:
            error_tail = self._output(held.uid, task, outcome, details)
        except OSError as error:  # of this task's files alone
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
        """Fetch what the executable wrote. Returns the end of its standard error."""
        folder = Path(urlsplit(details.get("sandbox", "")).path)
        out, err = folder / f"{uid}.out", folder / f"{uid}.err"
        if not details.get("sandbox") or not (out.exists() and err.exists()):
            # It never started, it removed them, or they are elsewhere: what RADICAL-Pilot kept is all that there is.
            outcome.stdout, outcome.stderr = details.get("stdout"), details.get("stderr")
            return (outcome.stderr or "")[-_TAIL:]
        asked = task.capture_stdio or task.stdout_file is not None or task.stderr_file is not None
        command = command_of(task, self._captured()) if asked else None
        outcome.stdout_path = command.stdout_path if command is not None else None
        outcome.stderr_path = command.stderr_path if command is not None else None
        tail = _read_bounded(err, _TAIL)[-_TAIL:]
        if outcome.stdout_path is None:
            outcome.stdout = _read_bounded(out, KEEP)
        if outcome.stderr_path is None:
            outcome.stderr = _read_bounded(err, KEEP)
        for source, target in ((out, outcome.stdout_path), (err, outcome.stderr_path)):
            if target is not None:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                if source is err and target == outcome.stdout_path:  # one file for both
                    with Path(target).open("ab") as both:
                        both.write(err.read_bytes())
                else:
                    shutil.move(source, target)
        return tail

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


def _why_lost(details: Mapping[str, Any]) -> str:
    code = details.get("exit_code")
    ended = f"with exit code {code}" if code is not None else "without an exit code"
    said = details.get("stderr") or ""
    return f"the process that ran it on the pilot ended {ended}\n{said}".rstrip()


def _not_asked(task: ComputeTask, error_tail: str) -> Exception:
    timeout = (task.backend_options or {}).get("timeout")
    if timeout:
        return TaskExecutionError(task.uid, None, error_tail, reason=f"stopped at its timeout of {timeout:g} seconds")
    return WorkerLostError(f"task {task.uid}: RADICAL-Pilot canceled it, without a request from this session")


def _shell_says(text: str, executable: str) -> str:
    """Return the shell's message on an executable that it could not run; empty if there is none."""
    match = re.search(rf"^.*\.sh: line \d+: (?:exec: )?{re.escape(executable)}: (.+)$", text, re.MULTILINE)
    return match.group(1) if match else ""


def _ended_by_signal(number: int, text: str) -> bool:
    """Whether the shell reported a signal; an executable may also return such a number itself."""
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
