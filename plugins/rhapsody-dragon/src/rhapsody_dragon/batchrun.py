"""The user's side of Dragon's Batch, which lives in a process of its own inside the runtime (`far_batch.py`)."""

from __future__ import annotations

import asyncio
import pickle
import queue
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rhapsody.errors import (
    BackendLostError,
    BackendShutdownError,
    BackendStartError,
    SubmitError,
    TaskCanceledError,
    TaskExecutionError,
    WorkerLostError,
)
from rhapsody.plugin import (
    BackendContext,
    BackendLost,
    CancelResult,
    ComputeTask,
    Outcome,
    Started,
    TaskBatch,
    TaskState,
)

from .deaths import end_process
from .far import HEAD, Joiner, Kind, send
from .far_batch import Request, host
from .local import wait_for_end
from .options import TEMPLATE, ranks_of
from .pool import QUEUE_SIZE, WAIT_SECONDS
from .programs import Program, marker_of, signal_task
from .units import destroy

#: Seconds for Batch to be up (measured: 7 on two cores, 20 on a busy machine).
BATCH_DEADLINE: Final = 60.0
#: Seconds for Batch to leave in order, before its process is killed.
LEAVE_DEADLINE: Final = 6.0
#: Seconds for which a cancel waits for Batch to have stopped a task.
CANCEL_SECONDS: Final = 10.0
#: The exceptions that Batch raises inside a function, and what they mean.
INTERRUPTIONS: Final = {"_FunctionTaskCancelled": "canceled", "_FunctionTaskTimedOut": "timeout"}


class Run:
    """A unit in the hands of Batch: one task."""

    def __init__(self, batch: TaskBatch) -> None:
        self.batch = batch
        self.task: ComputeTask = batch.tasks[0]
        self.program: Program | None = None
        self.canceled = False
        self.sent = False
        self.sent_at: float | None = None

    def has_timed_out(self, value: Any) -> bool:
        """Whether Batch ended its processes for their time: it signals them, and tells of no other reason."""
        timeout = (self.task.backend_options or {}).get("timeout")
        if timeout is None or self.sent_at is None or time.time() - self.sent_at < timeout:
            return False
        codes = value if isinstance(value, list) else [value]
        return any(code in (-signal.SIGTERM, -signal.SIGKILL) for code in codes)


class BatchRuns:
    """Starts Batch, and runs units on it; all methods may be called from any thread.

    Args:
        context: of the backend.
        folder: where tasks run that do not say.
        home: a folder in which Batch may leave its file; removed with the runtime, or by `close`.
        workers_per_node: of Batch; None for one on each core.
        disable_telemetry: passed to Batch.
        policy: where Batch's process runs; None for Dragon's own placement.
        here: whether all processes are on this node.
    """

    def __init__(
        self,
        context: BackendContext,
        *,
        folder: str,
        home: str | None,
        workers_per_node: int | None,
        disable_telemetry: bool,
        policy: Any,
        here: bool,
    ) -> None:
        self._context = context
        self._folder = folder
        self._settings = (workers_per_node, disable_telemetry)
        self._policy = policy
        self._here = here
        self._scratch = tempfile.TemporaryDirectory(
            prefix="rhapsody-dragon-", dir=home or context.sandbox, ignore_cleanup_errors=True
        )
        self._lock = threading.Lock()
        self._up = threading.Event()
        self._problem: str | None = None
        self._runs: dict[int, Run] = {}
        self._inbox: Any = None
        self._outbox: Any = None
        self._process: Any = None
        self._threads: list[threading.Thread] = []
        self._waiting: queue.SimpleQueue[Run | None] = queue.SimpleQueue()
        self._feeder: threading.Thread | None = None
        self._closing = False
        self._gone = False

    # -- the life of Batch -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start Batch and wait until it is up.

        Raises:
            BackendStartError: it did not come up.
        """
        with self._lock:
            if self._process is None and not self._closing:
                self._start_process()
        if not self._up.wait(BATCH_DEADLINE):
            self._problem = self._problem or f"it was not up within {BATCH_DEADLINE:g} seconds"
        if self._problem is not None:
            raise BackendStartError(f"backend {self._context.backend!r}: Dragon's Batch did not start: {self._problem}")

    def _start_process(self) -> None:
        from dragon.native.process import Process
        from dragon.native.queue import Queue

        self._inbox, self._outbox = Queue(maxsize=QUEUE_SIZE), Queue(maxsize=QUEUE_SIZE)
        self._process = Process(
            target=host,
            args=(self._inbox, self._outbox, *self._settings, sys.path),
            cwd=self._scratch.name,
            stdout=Process.DEVNULL,
            stderr=Process.DEVNULL,
            policy=self._policy,
        )
        self._process.start()
        self._run_thread("batch", self._drain)

    def _run_thread(self, name: str, body: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=body, args=args, name=f"rhapsody-dragon-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def close(self) -> None:
        """End Batch and what runs on it; bounded in time.

        Raises:
            BackendShutdownError: its process could not be ended; all else is.
        """
        self._closing = True
        self._waiting.put(None)
        problem = None
        with self._lock:
            process = self._process
        if process is not None and not self._gone:
            for run in list(self._runs.values()):
                if self._here:
                    signal_task(marker_of(self._context.session, run.task.uid), signal.SIGKILL)
            try:
                self._inbox.put(HEAD.pack(0, 0, Kind.STOP), timeout=1.0)
                patience = LEAVE_DEADLINE
            except Exception:  # its queue is full or broken, so it is killed
                patience = 0.0
            problem = end_process(process, patience)
            self._outbox.put(HEAD.pack(0, 0, Kind.STOP), timeout=1.0)
            for thread in [*self._threads, *filter(None, [self._feeder])]:
                thread.join(WAIT_SECONDS + 1.0)
            destroy(self._inbox, self._outbox)
        self._scratch.cleanup()
        if problem is not None:
            raise BackendShutdownError(f"backend {self._context.backend!r}: the process of Dragon's Batch {problem}")

    def runtime_lost(self) -> None:
        """The runtime is gone: nothing of it may be touched."""
        self._gone = True
        self._problem = self._problem or "the Dragon runtime is gone"
        self._up.set()

    # -- units go down -----------------------------------------------------------------------------------------------

    def submit(self, batch: TaskBatch) -> None:
        """Take one task for Batch; a thread hands it on, after starting Batch where it is the first."""
        self._runs[batch.uid] = run = Run(batch)
        with self._lock:
            if self._feeder is None:
                self._feeder = threading.Thread(target=self._feed, name="rhapsody-dragon-feed", daemon=True)
                self._feeder.start()
        self._waiting.put(run)

    def _feed(self) -> None:
        while (run := self._waiting.get()) is not None:
            try:
                self.start()
                if self._closing or (run.canceled and not run.sent):
                    self._end(run, "canceled", None)
                else:
                    self._send(run)
            except FileNotFoundError as error:
                self._end_with(run, TaskExecutionError(run.task.uid, None, reason=str(error)))
            except Exception as error:
                problem = (
                    error if isinstance(error, BackendStartError) else SubmitError(f"task {run.task.uid}: {error}")
                )
                self._end_with(run, problem)

    def _send(self, run: Run) -> None:
        request = self._request(run)
        if run.task.is_final:  # it could not be encoded, which has been reported
            self._runs.pop(run.batch.uid, None)
            return
        run.sent, run.sent_at = True, time.time()
        self._context.events.put([Started(run.task.uid, run.sent_at)])
        data = pickle.dumps(tuple(request))
        send(lambda part: self._inbox.put(part, timeout=60.0), 0, run.batch.uid, Kind.RUN, data)

    def _request(self, run: Run) -> Request:
        task = run.task
        options = task.backend_options or {}
        timeout = options.get("timeout")
        single, several = options.get("process_template"), options.get("process_templates")
        by_worker = single is None and several is None and ranks_of(task) == 1
        if task.function is not None or (by_worker and timeout is None):
            payload = run.batch.encode()
            if task.function is not None and single is not None:
                keywords = {key: value for key, value in single.items() if key in TEMPLATE}
                keywords.setdefault("cwd", self._folder)
                return Request("process", payload, [(1, "", (), keywords)], timeout)
            return Request("function", payload, timeout=timeout)
        scratch = self._context.sandbox if task.capture_stdio else Path(self._scratch.name)
        run.program = Program(task, self._context.session, scratch)
        plan = [tuple(launch) for launch in run.program.plan(self._folder)]
        kind = "process" if by_worker or (single is not None and ranks_of(task) == 1) else "job"
        return Request(kind, b"", plan, timeout, options.get("pmi", "cray"))  # type: ignore[arg-type]

    # -- what comes back ---------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        joiner = Joiner()
        while not self._gone:
            try:
                message = joiner.feed(self._outbox.get(timeout=WAIT_SECONDS))
            except queue.Empty:
                continue
            except Exception as error:
                if not self._closing:
                    self._lose(f"what Batch reports can no longer be read: {type(error).__name__}: {error}")
                return
            if message is None:
                continue
            _, unit, kind, data = message
            if kind is Kind.STOP:
                return
            if kind is Kind.READY:
                self._run_thread("batch-death", self._watch, int(bytes(data)))
            elif kind is Kind.STARTED:
                self._problem = bytes(data).decode() or None
                self._up.set()
            elif kind is Kind.FRAME:
                run = self._runs.get(unit)
                if run is not None:
                    self._runs.pop(unit, None)
                    self._context.events.put([self._judge(run, outcome) for outcome in run.batch.decode(data)])
            elif kind is Kind.JOB:
                how, value = pickle.loads(data)
                if how == "lost":
                    self._lose(f"Batch can no longer be polled: {value}")
                elif (run := self._runs.get(unit)) is not None:
                    self._end(run, how, value)

    def _judge(self, run: Run, outcome: Outcome) -> Outcome:
        """Name the end of a function in which Batch raised an exception of its own to stop it."""
        how = INTERRUPTIONS.get(type(outcome.exception).__name__)
        return outcome if how is None else self._outcome(run, how, None)

    def _end(self, run: Run, how: str, value: Any) -> None:
        self._runs.pop(run.batch.uid, None)
        self._context.events.put([self._outcome(run, how, value)])

    def _end_with(self, run: Run, error: Exception) -> None:
        self._runs.pop(run.batch.uid, None)
        self._context.events.put([_failed(run, error)])

    def _outcome(self, run: Run, how: str, value: Any) -> Outcome:
        """What became of a unit whose frame did not arrive before."""
        uid = run.task.uid
        error: Exception
        if how == "canceled" or (run.canceled and run.program is not None):
            error = TaskCanceledError(f"task {uid} was canceled")
        elif how == "timeout" or (how == "ended" and run.has_timed_out(value)):
            timeout = (run.task.backend_options or {}).get("timeout", 0)
            error = TimeoutError(f"task {uid} did not end within {timeout:g} seconds")
        elif how == "ended" and run.program is not None:
            codes = value if isinstance(value, list) else [value]
            code = next((int(code) for code in codes if code), 0)
            return run.program.outcome(code, run.sent_at, socket.gethostname() if self._here else None)
        elif how == "ended":
            error = WorkerLostError(f"task {uid}: the process that ran it ended without a result ({value!r})")
        elif run.program is not None or how == "refused":
            error = TaskExecutionError(uid, None, reason=f"Dragon's Batch did not run it: {value}")
        else:
            error = WorkerLostError(f"task {uid}: the Batch worker that ran it failed: {value}")
        if run.program is not None:
            run.program.remove()
        outcome = _failed(run, error)
        if isinstance(error, TaskCanceledError):
            outcome.state = TaskState.CANCELED
        return outcome

    def _watch(self, pid: int) -> None:
        """Tell when the process that holds Batch ends."""
        if self._here:
            wait_for_end(pid, None)
        else:
            self._process.join()
        if not self._closing and not self._gone:
            self._problem = self._problem or "its process ended"
            self._up.set()
            self._lose("the process that held Dragon's Batch ended")

    def _lose(self, why: str) -> None:
        error = BackendLostError(f"backend {self._context.backend!r}: {why}")
        self._context.events.put([BackendLost(error)])

    # -- cancel ------------------------------------------------------------------------------------------------------

    async def cancel(self, uids: set[str]) -> dict[str, CancelResult]:
        """Ask Batch to stop units: it drops what waits, ends processes, and raises in a function at its next line."""
        runs = [run for run in list(self._runs.values()) if run.task.uid in uids]
        for run in runs:
            run.canceled = True
            if run.sent:
                self._inbox.put(HEAD.pack(0, run.batch.uid, Kind.TERMINATE), timeout=1.0)
        until = time.monotonic() + CANCEL_SECONDS
        while any(not run.task.is_final for run in runs) and time.monotonic() < until:  # noqa: ASYNC110 - a cancel is rare
            await asyncio.sleep(0.05)
        return {run.task.uid: _fate(run.task) for run in runs}


def _fate(task: ComputeTask) -> CancelResult:
    if task.state is TaskState.CANCELED:
        return CancelResult.STOPPED
    return CancelResult.TOO_LATE if task.is_final else CancelResult.CANNOT_STOP


def _failed(run: Run, error: Exception) -> Outcome:
    return Outcome(run.task.uid, TaskState.FAILED, exception=error, started_at=run.sent_at, ended_at=time.time())
