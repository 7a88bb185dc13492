"""What the user's side knows of a unit in the hands of Dragon's Batch: what it asks for, and how it reads its end."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any, Final

from rhapsody.errors import TaskCanceledError, TaskExecutionError, WorkerLostError
from rhapsody.plugin import ComputeTask, Outcome, TaskBatch, TaskState

from .far_batch import Request
from .options import TEMPLATE, ranks_of
from .programs import Program, marker_of

#: The exceptions that Batch raises inside a function, and what they mean.
INTERRUPTIONS: Final = {"_FunctionTaskCancelled": "canceled", "_FunctionTaskTimedOut": "timeout"}

_numbers = itertools.count(1)


class Run:
    """A unit of Batch, which is one task.

    Attributes:
        number: by which Batch's process and its workers know it; of all that share one Batch.
        program: its files, where Dragon itself starts its processes.
        asks: whether a worker of Batch runs it, which asks before it begins.
        sent_at: when Batch got it, in seconds since the epoch; None before.
        begun_at: when it was seen to run; None before.
        worker: the number of the worker that runs it; None if no worker of Batch does.
        answers: the queue on which that worker listens.
        canceled: whether a cancel has met it.
        stopping: whether Batch has agreed to stop it.
        sign: a file that it makes when it begins, where it is a function in a process of its own.
        silent_since: since when, on the monotonic clock, none of its processes is there; None while one is.
    """

    def __init__(self, batch: TaskBatch) -> None:
        self.number = next(_numbers)
        self.batch = batch
        self.task: ComputeTask = batch.tasks[0]
        self.program: Program | None = None
        self.asks = False
        self.sent_at: float | None = None
        self.begun_at: float | None = None
        self.worker: int | None = None
        self.answers: Any = None
        self.canceled = False
        self.stopping = False
        self.sign: Path | None = None
        self.silent_since: float | None = None

    def request(self, session: str, folder: str, scratch: Path) -> Request:
        """Say in Batch's words what is to run, and write what it reads.

        Args:
            session: uid of the session.
            folder: where it runs where it does not say.
            scratch: where its files are.

        Raises:
            FileNotFoundError: its program, or the folder in which it should run, is not there.
        """
        task = self.task
        options = task.backend_options or {}
        timeout = options.get("timeout")
        single, several = options.get("process_template"), options.get("process_templates")
        by_worker = single is None and several is None and ranks_of(task) == 1
        if task.function is not None or (by_worker and timeout is None):
            payload = self.batch.encode()
            if task.function is not None and single is not None:
                keywords = {key: value for key, value in single.items() if key in TEMPLATE}
                keywords.setdefault("cwd", folder)
                marker = marker_of(session, task.uid)
                keywords["env"] = {**os.environ, **(keywords.get("env") or {}), **marker}
                self.sign = scratch / f"{self.number}.begun"
                return Request("process", payload, [(1, "", (), keywords)], timeout, sign=str(self.sign))
            self.asks = True
            return Request("function", payload, timeout=timeout, is_program=task.function is None)
        self.program = Program(task, session, scratch)
        plan = [(one.processes, one.target, one.args, one.keywords) for one in self.program.plan(folder)]
        kind = "process" if by_worker or (single is not None and ranks_of(task) == 1) else "job"
        return Request(kind, b"", plan, timeout, options.get("pmi", "cray"))

    def recall(self) -> None:
        """Take it back from a Batch that has not begun it; it can be sent to another."""
        self.sent_at = None
        self.stopping = False

    def has_left_a_sign(self) -> bool:
        """Whether it has begun, as its files say, where no worker of Batch runs it."""
        return (self.sign is not None and self.sign.exists()) or (self.program is not None and self.program.has_begun())

    @property
    def has_processes(self) -> bool:
        """Whether it runs in processes of its own, which have its marker, and not in a worker of Batch."""
        return self.begun_at is not None and self.worker is None

    @property
    def can_be_withdrawn(self) -> bool:
        """Whether a word of ours is enough for it never to begin."""
        return self.sent_at is None or (self.asks and self.begun_at is None)

    def judge(self, outcome: Outcome) -> Outcome:
        """Name the end of a function in which Batch raised an exception of its own to stop it."""
        self._remove_sign()
        how = INTERRUPTIONS.get(type(outcome.exception).__name__)
        return outcome if how is None else self.outcome(how)

    def outcome(self, how: str, value: Any = None, ran_on: str | None = None) -> Outcome:
        """What became of it, if no frame of it arrived before.

        Args:
            how: "canceled", "timeout", "ended", "failed" or "refused": Batch's own word.
            value: the exit code, or a list of them, of what ended; otherwise the reason.
            ran_on: the host, where it is known.
        """
        uid = self.task.uid
        error: Exception
        if how == "canceled" or (self.canceled and self.program is not None):
            error = TaskCanceledError(f"task {uid} was canceled")
        elif how == "timeout" or (how == "ended" and self._has_timed_out(value)):
            timeout = (self.task.backend_options or {}).get("timeout", 0)
            error = TimeoutError(f"task {uid} did not end within {timeout:g} seconds")
        elif how == "ended" and self.program is not None:
            code = next((int(code) for code in _codes(value) if code), 0)
            return self.program.outcome(code, self.begun_at or self.sent_at, ran_on)
        elif how == "ended":
            error = WorkerLostError(f"task {uid}: the process that ran it ended without a result ({value!r})")
        elif self.program is not None or how == "refused":
            error = TaskExecutionError(uid, None, reason=f"Dragon's Batch did not run it: {value}")
        else:
            error = WorkerLostError(f"task {uid}: the Batch worker that ran it failed: {value}")
        return self.failed(error)

    def failed(self, error: Exception) -> Outcome:
        """End it with an error, or with CANCELED if the error says so, and remove its files."""
        self._remove_sign()
        if self.program is not None:
            self.program.remove()
        state = TaskState.CANCELED if isinstance(error, TaskCanceledError) else TaskState.FAILED
        return Outcome(self.task.uid, state, exception=error, started_at=self.begun_at, ended_at=time.time())

    def _remove_sign(self) -> None:
        if self.sign is not None:
            self.sign.unlink(missing_ok=True)

    def _has_timed_out(self, value: Any) -> bool:
        """Whether Batch ended its processes for their time: it signals them, and tells of no other reason."""
        timeout = (self.task.backend_options or {}).get("timeout")
        if timeout is None or self.sent_at is None or time.time() - self.sent_at < timeout:
            return False
        return any(code in (-signal.SIGTERM, -signal.SIGKILL) for code in _codes(value))


def _codes(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
