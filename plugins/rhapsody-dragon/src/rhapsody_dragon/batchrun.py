"""What the user's side does with units of Dragon's Batch: sends, follows, cancels, and mends Batch when it is spoiled.

Batch reserves a core for what it runs, and does not get it back when the worker dies (Dragon 0.15). So after the death
of a worker nothing more begins; when what runs beside it has ended, another Batch takes its place.
"""

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
from functools import partial
from pathlib import Path
from typing import Any, Final

from rhapsody.errors import (
    BackendLostError,
    BackendShutdownError,
    BackendStartError,
    SubmitError,
    TaskExecutionError,
    WorkerLostError,
)
from rhapsody.plugin import (
    BackendContext,
    BackendLost,
    CancelResult,
    ComputeTask,
    Started,
    TaskBatch,
    TaskState,
)

from .batchhost import CLOSE_DEADLINE, BatchHost, share
from .batchunit import Run
from .far import name_task
from .messages import WAIT_SECONDS, Kind, Message, send
from .programs import MARKER, marked_tasks, marker_of, signal_task, stop_task, wait_for_none
from .runtime import DragonRuntime

#: Seconds for which a cancel waits for Batch to have stopped a task.
CANCEL_SECONDS: Final = 10.0
#: After this long a cancel counts as stopped what Batch has agreed to stop, and was not seen to begin.
AGREED_SECONDS: Final = 1.0
#: Seconds for what still runs at the end to stop, where others go on with the same Batch.
LEAVE_SECONDS: Final = 2.0
#: Seconds between two looks at whether programs have begun, and whether a spoiled Batch is idle.
LOOK_SECONDS: Final = 0.5
#: Seconds after which a spoiled Batch that runs nothing is taken to have no room for what it holds.
STUCK_SECONDS: Final = 5.0
#: Seconds after which a spoiled Batch is taken not to know the end of what has run, and has no process any more;
SILENT_SECONDS: Final = 20.0
#: and where it was stopped.
STOPPED_SECONDS: Final = 1.0


class BatchRuns:
    """Starts Batch, and runs units on it; all methods may be called from any thread.

    Args:
        context: of the backend.
        runtime: where Batch runs. Backends on it that want the same Batch share it.
        folder: where tasks run that do not say.
        workers_per_node: of Batch; None for one on each core.
        workers: of Batch, on all nodes.
        disable_telemetry: passed to Batch.
        policy: where Batch's process runs; None for Dragon's own placement.
        here: whether all processes are on this node.
    """

    def __init__(
        self,
        context: BackendContext,
        *,
        runtime: DragonRuntime,
        folder: str,
        workers_per_node: int | None,
        workers: int,
        disable_telemetry: bool,
        policy: Any,
        here: bool,
    ) -> None:
        self._context = context
        self._folder = folder
        self._arguments = (workers_per_node, disable_telemetry, sys.path, workers)
        self._policy = policy
        self._here = here
        self._runtime = runtime
        self._home = runtime.home or context.sandbox
        self._scratch = tempfile.TemporaryDirectory(
            prefix="rhapsody-dragon-", dir=self._home, ignore_cleanup_errors=True
        )
        self._lock = threading.Lock()
        self._deciding = threading.Lock()  # whether a unit begins, or is canceled or recalled before
        self._host: BatchHost | None = None
        self._runs: dict[int, Run] = {}
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()  # for the feeding thread
        self._feeder: threading.Thread | None = None
        self._unseen: dict[int, Run] = {}  # programs that Batch has, and that have not been seen to run
        self._held: list[Run] = []  # units for the Batch that takes the place of a spoiled one
        self._spoiled = False
        self._idle_since: float | None = None  # the spoiled one
        self._looked_at = 0.0  # at the spoiled one, on the monotonic clock
        self._closing = False
        self._is_lost = False

    # -- the life of Batch -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start Batch and wait until it is up.

        Raises:
            BackendStartError: it did not come up, or is no longer wanted.
        """
        key = (self._runtime, *self._arguments[:2])
        with self._lock:
            if self._host is None and not self._closing:
                self._host = share(key, self, self._new_host)
            host = self._host
        problem = None if host is None else host.wait_until_up(lambda: self._closing)
        if self._closing or host is None:
            problem = "it is being closed"
        if problem is not None:
            raise BackendStartError(f"backend {self._context.backend!r}: Dragon's Batch did not start: {problem}")

    def close(self) -> None:
        """End Batch and what runs on it; bounded in time. May be called again.

        Raises:
            BackendShutdownError: its process could not be ended; all else is.
        """
        if self._closing:
            return
        self._closing = True
        self._orders.put(None)
        with self._lock:
            host = self._host
        problem = self._end_host(host) if host is not None else None
        if self._feeder is not None:
            until = time.monotonic() + CLOSE_DEADLINE
            while self._feeder.is_alive() and not self._is_gone() and time.monotonic() < until:
                self._feeder.join(WAIT_SECONDS)
        self._scratch.cleanup()
        if problem is not None:
            raise BackendShutdownError(f"backend {self._context.backend!r}: the process of Dragon's Batch {problem}")

    def wake(self) -> None:
        """Look again at the runtime, which is gone."""
        if self._host is not None:
            self._host.wake()

    def _is_gone(self) -> bool:
        return self._runtime.lost is not None

    def _new_host(self) -> BatchHost:
        return BatchHost(
            self._arguments,
            runtime=self._runtime,
            home=self._home,
            policy=self._policy,
            here=self._here,
            log=self._context.log,
        )

    def _end_host(self, host: BatchHost) -> str | None:
        """Leave Batch. What still runs there is ended, one by one where others go on with it."""
        if self._here and not self._is_gone():
            for run in list(self._runs.values()):
                # The process of a function is one of Dragon's own, which must not be killed while it starts.
                if run.task.function is None or run.begun_at is not None:
                    signal_task(self._marker(run), signal.SIGKILL)
        if host.is_shared() and not self._is_gone():
            self._end_units(host)
        return host.leave(self)

    def _end_units(self, host: BatchHost) -> None:
        mine = [run for run in list(self._runs.values()) if run.sent_at is not None]
        for run in mine:
            run.canceled = True
            self._stop(run)
        until = time.monotonic() + LEAVE_SECONDS
        while any(run.number in self._runs for run in mine) and time.monotonic() < until:
            time.sleep(0.05)
        for run in mine:
            if run.number in self._runs and run.worker is not None:
                host.end_worker(run.worker)

    def holds(self, unit: int) -> bool:
        """Whether a unit is this backend's."""
        return unit in self._runs

    def lose(self, why: str) -> None:
        """Tell the session that Batch can no longer be used."""
        self._is_lost = True
        self._orders.put(lambda: None)  # for the feeding thread to see it
        error = BackendLostError(f"backend {self._context.backend!r}: {why}")
        self._context.events.put([BackendLost(error)])

    # -- units go down -----------------------------------------------------------------------------------------------

    def submit(self, batch: TaskBatch) -> None:
        """Take one task for Batch; a thread hands it on, after starting Batch where it is the first."""
        run = Run(batch)
        self._runs[run.number] = run
        self._order(partial(self._launch, run))

    def _order(self, order: Callable[[], None]) -> None:
        """Have the feeding thread do something, which starts with the first order."""
        with self._lock:
            if self._feeder is None and not self._closing:
                self._feeder = threading.Thread(target=self._feed, name="rhapsody-dragon-feed", daemon=True)
                self._feeder.start()
        self._orders.put(order)

    def _feed(self) -> None:
        """Serve orders, and look after what tells of itself to nobody."""
        try:
            while not self._is_lost and (order := self._next_order()) is not None:
                order()
                self._look_for_begun()
                if self._spoiled and time.monotonic() - self._looked_at >= LOOK_SECONDS:
                    self._renew()
                    self._looked_at = time.monotonic()
        except Exception as error:
            if not self._is_gone():
                self.lose(f"nothing more can be handed to Batch: {type(error).__name__}: {error}")
        if self._is_lost and self._host is not None:  # others may share it, and go on without this
            self._end_host(self._host)

    def _next_order(self) -> Callable[[], None] | None:
        """Wait for an order; where there is something to look after, for a while only."""
        try:
            return self._orders.get(timeout=LOOK_SECONDS if self._unseen or self._spoiled else None)
        except queue.Empty:
            return lambda: None

    def _launch(self, run: Run) -> None:
        if self._spoiled:
            self._held.append(run)
            return
        try:
            self.start()
            self._send(run)
        except Exception as error:
            if self._is_gone():  # the loss of the backend settles it
                return
            if self._closing:
                self._end(run, "canceled")
            elif isinstance(error, OSError):  # of its files: its program, its folder, its name
                self._fail(run, TaskExecutionError(run.task.uid, None, reason=str(error)))
            elif isinstance(error, BackendStartError):
                self._fail(run, error)
            else:
                self._fail(run, SubmitError(f"task {run.task.uid}: {error}"))

    def _send(self, run: Run) -> None:
        assert self._host is not None
        scratch = self._context.sandbox if run.task.capture_stdio else Path(self._scratch.name)
        request = run.request(self._context.session, self._folder, scratch)
        if not run.batch.shipped:  # it could not be encoded, which has been reported
            self._runs.pop(run.number, None)
            return
        with self._deciding:
            if run.canceled:
                self._end(run, "canceled")  # unless the cancel has done so
                if run.program is not None:
                    run.program.remove()
                return
            run.sent_at = time.time()
        if run.program is not None:
            self._unseen[run.number] = run
        self._host.send(run.number, Kind.RUN, pickle.dumps(tuple(request)))

    def _stop(self, run: Run) -> None:
        """Ask whoever runs it to stop it: the worker for a program that it started itself, otherwise Batch."""
        host, unit = self._host, run.number
        if host is None or unit not in self._runs:  # it has ended meanwhile
            return
        try:
            if self._spoiled and self._here and run.has_processes:  # Batch may have lost who waits for it
                threading.Thread(target=self._stop_here, args=(self._marker(run),), daemon=True).start()
            if run.answers is not None and run.task.function is None:
                name = name_task(self._context.session, run.task.uid)
                send(run.answers, 0, unit, Kind.TERMINATE, name, timeout=1.0)
            else:
                host.send(unit, Kind.TERMINATE)
        except Exception as error:  # the cancel will say that it could not stop it
            self._context.log.warning("stop_not_sent", backend=self._context.backend, task=run.task.uid, why=str(error))

    @staticmethod
    def _stop_here(marker: dict[str, str]) -> None:
        stop_task(marker, signal.SIGTERM, lambda seconds: wait_for_none(marker, seconds))

    # -- what comes back ---------------------------------------------------------------------------------------------

    def take(self, host: BatchHost, unit: int, kind: Kind, data: Message) -> None:
        """Take a message in, of the thread that reads them."""
        if kind is Kind.GONE:
            for its in [run for run in list(self._runs.values()) if run.worker == unit and host is self._host]:
                self._fail(its, WorkerLostError(f"task {its.task.uid}: the worker of Dragon's Batch that ran it died"))
            self._order(partial(self._spoil, host))
        elif host is not self._host:  # of a Batch that was replaced
            return
        elif kind is Kind.CLAIM:
            self._answer(host, unit, bytes(data))
        elif kind is Kind.FRAME:
            if (run := self._runs.pop(unit, None)) is not None:
                self._context.events.put([run.judge(outcome) for outcome in run.batch.decode(data)])
        elif kind is Kind.JOB:
            how, value = pickle.loads(data)
            run = self._runs.get(unit)
            if how == "lost":
                host.retire()
                self.lose(f"Batch can no longer be polled: {value}")
            elif run is not None and how == "stopping":
                run.stopping = True
            elif run is not None and run.sent_at is not None:
                self._end(run, how, value)
                if run.program is not None and self._here:
                    signal_task(run.program.marker, signal.SIGKILL)  # what it left in the background

    def _answer(self, host: BatchHost, unit: int, claim: bytes) -> None:
        """Let a worker begin a unit, unless it is no longer wanted. A process of a unit's own has begun it."""
        run = self._runs.get(unit)
        try:
            answers, worker = host.worker_of(claim) if claim else (None, None)
            begins = run is not None and self._begin(run, worker, answers)
            if answers is not None:
                send(answers, 0, unit, Kind.RUN if begins else Kind.SKIP, timeout=1.0)
        except Exception as error:  # the worker has died with its queue
            if run is not None:
                self._end(run, "failed", f"it cannot be answered: {type(error).__name__}: {error}")
            host.spoil()

    def _begin(self, run: Run, worker: int | None = None, answers: Any = None) -> bool:
        """Report that a unit runs; False if it has ended, or was canceled or recalled before."""
        with self._deciding:
            if run.number not in self._runs or run.sent_at is None:
                return False
            run.begun_at, run.worker, run.answers = time.time(), worker, answers
            self._context.events.put([Started(run.task.uid, run.begun_at)])
        return True

    def _look_for_begun(self) -> None:
        """Report the programs that Dragon has started meanwhile; it tells nobody itself."""
        for unit, run in list(self._unseen.items()):
            if unit not in self._runs or run.sent_at is None:
                del self._unseen[unit]
            elif run.program is not None and run.program.has_begun():
                del self._unseen[unit]
                self._begin(run)

    def _end(self, run: Run, how: str, value: Any = None) -> None:
        if self._runs.pop(run.number, None) is not None:
            ran_on = socket.gethostname() if self._here else None
            self._context.events.put([run.outcome(how, value, ran_on)])

    def _fail(self, run: Run, error: Exception) -> None:
        if self._runs.pop(run.number, None) is not None:
            self._context.events.put([run.failed(error)])

    # -- a spoiled Batch ---------------------------------------------------------------------------------------------

    def _spoil(self, host: BatchHost) -> None:
        """Let nothing more begin on a Batch that has lost a worker."""
        if self._spoiled or host is not self._host:  # it is known, or over
            return
        self._spoiled, self._idle_since = True, None
        self._context.log.warning(
            "worker_lost", backend=self._context.backend, then="Batch is replaced once it is idle"
        )
        with self._deciding:
            self._hold([run for run in self._there() if run.can_be_withdrawn])
        for run in self._there():
            if run.canceled:  # before it was known that nobody may wait for it
                self._stop(run)

    def _renew(self) -> None:
        """Put another Batch in the place of a spoiled one that is idle, and send it what was held."""
        self._end_unwatched()
        host = self._host
        assert host is not None  # it is what was spoiled
        with self._deciding:
            there = self._there()
            if any(run.begun_at is not None for run in there):
                self._idle_since = None
            elif self._idle_since is None:
                self._idle_since = time.monotonic()
            is_stuck = self._idle_since is not None and (
                not there or time.monotonic() - self._idle_since >= STUCK_SECONDS
            )
            # Where others have something there, what waits may yet begin after it.
            all_are = host.note_stuck(self, is_stuck)
            if self._closing or not (is_stuck and all_are):
                return
            self._hold(there)
        with self._lock:
            self._host = None
        if (problem := self._end_host(host)) is not None:
            self.lose(f"the process of a Batch that had lost a worker {problem}")
            return
        host.wait_until_ended(lambda: self._closing)  # two beside each other keep Dragon from answering
        self._spoiled = False
        held, self._held = self._held, []
        for run in held:
            if run.has_left_a_sign():  # it began while Batch was ended
                self._fail(run, WorkerLostError(f"task {run.task.uid} ended with a Batch that had lost a worker"))
            else:
                self._launch(run)

    def _end_unwatched(self) -> None:
        """End what has run in processes of its own, of which none is left, where Batch does not say how it ended.

        Then the worker that has died was the one that waited for them. Processes on other nodes are not seen.
        """
        if not self._here:
            return
        there = marked_tasks()
        for run in self._there():
            if not run.has_processes or self._marker(run)[MARKER] in there:
                run.silent_since = None
                continue
            run.silent_since = run.silent_since or time.monotonic()
            if time.monotonic() - run.silent_since < (STOPPED_SECONDS if run.canceled else SILENT_SECONDS):
                continue
            self._stop(run)  # it may have hidden itself, by another environment
            if run.canceled:
                self._end(run, "canceled")
            else:
                what = f"task {run.task.uid}: the worker of Dragon's Batch that waited for its end died"
                self._fail(run, WorkerLostError(f"{what}; how it ended is unknown"))

    def _marker(self, run: Run) -> dict[str, str]:
        return marker_of(self._context.session, run.task.uid)

    def _there(self) -> list[Run]:
        return [run for run in list(self._runs.values()) if run.sent_at is not None]

    def _hold(self, runs: list[Run]) -> None:
        for run in runs:
            run.recall()
        self._held.extend(runs)

    # -- cancel ------------------------------------------------------------------------------------------------------

    async def cancel(self, uids: set[str]) -> dict[str, CancelResult]:
        """Withdraw what waits, stop executables, and have Batch end processes and raise in functions."""
        met = [run for run in list(self._runs.values()) if run.task.uid in uids]
        results: dict[str, CancelResult] = {}
        asked = []
        with self._deciding:
            for run in met:
                run.canceled = True
                if run.can_be_withdrawn:
                    self._end(run, "canceled")
                    results[run.task.uid] = CancelResult.NEVER_STARTED
                else:
                    asked.append(run)
        for run in asked:
            self._orders.put(partial(self._stop, run))
        start = time.monotonic()
        while asked and time.monotonic() - start < CANCEL_SECONDS:
            await asyncio.sleep(0.05)  # a cancel is rare, and Batch has no word for its end
            agreed = time.monotonic() - start > AGREED_SECONDS
            for run in asked:
                waits = agreed and run.stopping and run.begun_at is None  # in Batch, which will not begin it
                if waits or run.can_be_withdrawn:  # it was taken back from a spoiled Batch
                    self._end(run, "canceled")
            asked = [run for run in asked if not run.task.is_final]
        for run in asked:  # they keep their real end
            run.canceled = False
        return {run.task.uid: results.get(run.task.uid) or _fate(run.task) for run in met}


def _fate(task: ComputeTask) -> CancelResult:
    if task.state is TaskState.CANCELED:
        return CancelResult.STOPPED
    return CancelResult.TOO_LATE if task.is_final else CancelResult.CANNOT_STOP
