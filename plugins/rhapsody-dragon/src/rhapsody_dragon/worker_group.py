"""The user's side of a persistent group of Dragon workers: which batch each has, and what becomes of it.

Each worker has one batch at a time, so it is known which batch is where: when a worker dies, the task that it ran
fails, and what it had not begun is given back to be run elsewhere.

Lock order: the group's own lock is never held while processors are claimed or released, which may call back.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from rhapsody.errors import SubmitError, WorkerLostError
from rhapsody.plugin import (
    FUNCTION,
    CancelResult,
    ComputeTask,
    Event,
    Outcome,
    Returned,
    Started,
    TaskBatch,
    TaskState,
    settle_lost,
)

from .messages import Kind, Message
from .processors import Claim, Site
from .worker_main import task_name
from .worker_processes import Worker, WorkerProcesses

#: Seconds after which the record is read for the start of a batch's first task, unless its end has come before.
SOON: Final = 0.005
#: Seconds between two such readings, where the worker takes long to load it, at most.
LATER: Final = 0.1
#: Seconds that a worker has to stop a task, before it is killed from outside; and then for its end to be noticed.
STOP_DEADLINE: Final = 4.0


class HeldBatch:
    """A batch that waits for a worker, or that one has."""

    def __init__(self, batch: TaskBatch, payload: bytes) -> None:
        self.batch = batch
        self.payload = payload
        self.claim = Claim()
        self.is_sent = False
        self.left: dict[str, ComputeTask] = {task.uid: task for task in batch.shipped}
        self.reported: ComputeTask | None = None  # the last task whose start was reported
        self._next = 0

    def running(self) -> ComputeTask | None:
        """The task that runs, or will run first."""
        tasks = self.batch.shipped  # a dict that loses its first entries is slow to begin, so this keeps its position
        while self._next < len(tasks):
            if tasks[self._next].uid in self.left:
                return tasks[self._next]
            self._next += 1
        return None

    def ended(self) -> set[str]:
        """The tasks whose end is reported."""
        return {task.uid for task in self.batch.shipped} - self.left.keys()


class WorkerGroup:
    """Runs batches on worker processes; `changed` is called with how many are up, whenever that changes."""

    def __init__(self, count: int, site: Site, changed: Callable[[int], None]) -> None:
        self._context, self._processors = site.context, site.processors
        self._changed = changed
        self._here = site.processors.is_one_node
        self._backlog: deque[HeldBatch] = deque()  # batches that no worker has
        self._stopping: dict[str, asyncio.Future[TaskState]] = {}  # tasks that were asked to stop, and how they end
        self._processes = WorkerProcesses(count, site, listener=self)
        self._workers, self._lock = self._processes.workers, self._processes.lock
        self.start, self.close, self.wake = self._processes.start, self._processes.close, self._processes.wake

    # -- batches go down ---------------------------------------------------------------------------------------------

    def submit(self, batch: TaskBatch) -> None:
        """Give a batch to an idle worker, or keep it until there is one; on the session's loop."""
        held = HeldBatch(batch, batch.encode())
        if held.left:  # otherwise none of it could be encoded, which has been reported
            self._backlog.append(held)
            self._assign()

    def _assign(self) -> None:
        """Give batches that wait to idle workers, each of which then waits for its turn at the processors."""
        while self._backlog:
            with self._lock:
                worker = next((worker for worker in self._workers if worker.is_idle), None)
                if worker is None or not self._backlog:
                    return
                held = worker.held = self._backlog.popleft()
                held.claim = claim = Claim(prefer=worker.node, granted=partial(self._send, worker, held))
            self._processors.claim(claim)

    def _send(self, worker: Worker, held: HeldBatch) -> None:
        """Send a batch that has its processor, unless it was canceled or its worker has died meanwhile."""
        with self._lock:
            # A worker that has died and is not replaced yet has an inbox from which its successor would take the batch,
            # though the batch is given back.
            held.is_sent = worker.held is held and worker.ready
            inbox = worker.inbox
        if not held.is_sent:
            self._processors.release(held.claim)
            return
        self._processes.put(worker, inbox, held.batch.uid, Kind.RUN, held.payload)
        held.payload = b""
        if self._here:
            self._check_later(worker, held, SOON)

    def _check_later(self, worker: Worker, held: HeldBatch, seconds: float) -> None:
        loop, check = self._context.loop, partial(self._report_start, worker, held, min(2 * seconds, LATER))
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            if asyncio._get_running_loop() is loop:
                loop.call_later(seconds, check)
            else:
                loop.call_soon_threadsafe(loop.call_later, seconds, check)

    def _report_start(self, worker: Worker, held: HeldBatch, again: float) -> None:
        """Report, on the loop, that a worker has begun a batch; check again later if it has not.

        Put before all that nobody has taken: the report of its end may be among that.
        """
        with self._lock:
            if self._processes.closing or worker.held is not held or held.reported is not None:
                return
            has_begun = bool(self._processes.record and self._processes.record.begun().get(held.batch.uid))
            started = self._next_started(held) if has_begun else ()
        if has_begun:
            self._context.events.put_first(started)
        else:
            self._check_later(worker, held, again)

    def _next_started(self, held: HeldBatch) -> Sequence[Started]:
        """Return, once, what a worker of this node has gone on to: the first task that has not ended."""
        task = held.running() if self._here else None
        if task is None or task is held.reported:
            return ()
        held.reported = task
        return (Started(task.uid, time.time()),)

    # -- cancel ------------------------------------------------------------------------------------------------------

    async def cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Stop tasks; several callers may stop the same task.

        Those of batches that no worker was sent never run, and the rest of these batches is given back. Of what a
        worker has, it decides itself: an executable gets SIGTERM, and SIGKILL after a grace; a function ends with its
        worker, which is replaced; what has not begun is left out.
        """
        results = self._take_back({task.uid for task in tasks})
        loop = asyncio.get_running_loop()
        with self._lock:
            held = [(task, *where) for task in tasks if (where := self._find(task.uid)) is not None]
            ends = {task.uid: self._stopping.setdefault(task.uid, loop.create_future()) for task, _, _ in held}
            running = {task.uid for task, _, own in held if own.running() is task}
        for task, worker, own in sorted(held, key=lambda one: one[0].uid in running):  # its end would begin the next
            kind = Kind.KILL if task.kind is FUNCTION else Kind.TERMINATE
            name = task_name(self._context.session, task.uid)
            self._processes.put(worker, worker.control, own.batch.uid, kind, name)
        if ends:
            _, late = await asyncio.wait(ends.values(), timeout=STOP_DEADLINE)
            if late:
                for task, worker, own in held:
                    with self._lock:
                        still_runs = task.uid in running and worker.held is own and own.running() is task
                    if still_runs and worker.process is not None:
                        await asyncio.to_thread(worker.process.kill)
                await asyncio.wait(late, timeout=STOP_DEADLINE)
        for task in tasks:
            end = ends.get(task.uid)
            if end is None:
                results.setdefault(task.uid, CancelResult.TOO_LATE)
            elif not end.done():
                results[task.uid] = CancelResult.CANNOT_STOP
            elif end.result() is not TaskState.CANCELED:
                results[task.uid] = CancelResult.TOO_LATE
            else:
                results[task.uid] = CancelResult.STOPPED if task.uid in running else CancelResult.NEVER_STARTED
        return results

    def withdraw(self, tasks: Sequence[ComputeTask]) -> None:
        """Have workers give back what they have not begun, to be run elsewhere."""
        wanted: dict[tuple[Worker, int], list[str]] = defaultdict(list)
        with self._lock:
            for worker, held, uid in ((*where, task.uid) for task in tasks if (where := self._find(task.uid))):
                wanted[worker, held.batch.uid].append(uid)
        for (worker, batch), uids in wanted.items():
            self._processes.put(worker, worker.control, batch, Kind.GIVE_BACK, "\n".join(uids).encode())

    def _take_back(self, uids: set[str]) -> dict[str, CancelResult]:
        """Withdraw batches that no worker was sent."""
        with self._lock:
            unsent = [held for held in self._backlog if uids & held.left.keys()]
            for held in unsent:
                self._backlog.remove(held)
            for worker in self._workers:
                if (own := worker.held) is not None and not own.is_sent and uids & own.left.keys():
                    unsent.append(own)
                    worker.held = None
        results: dict[str, CancelResult] = {}
        for held in unsent:
            self._processors.release(held.claim)
            mine = uids & held.left.keys()
            results |= dict.fromkeys(mine, CancelResult.NEVER_STARTED)
            self._report(settle_lost(held.batch, held.ended(), (), mine, why="it was withdrawn"))
        self._assign()
        return results

    def _find(self, uid: str) -> tuple[Worker, HeldBatch] | None:
        """Find a task among what workers were sent."""
        for worker in self._workers:
            if (held := worker.held) is not None and held.is_sent and uid in held.left:
                return worker, held
        return None

    # -- what the processes report -----------------------------------------------------------------------------------

    def take(self, worker: Worker, batch: int, kind: Kind, data: Message) -> None:
        """Take what a worker says of its batch."""
        held = worker.held
        if held is None or held.batch.uid != batch:
            return
        if kind is Kind.FRAME:
            outcomes = held.batch.decode(data)
            with self._lock:
                for outcome in outcomes:
                    held.left.pop(outcome.uid, None)
                started = self._next_started(held)
            self._finish(worker, held, [*outcomes, *started])
        elif kind is Kind.BEGUN:
            self._report([Started(bytes(data).decode(), time.time())])
        elif kind is Kind.LEFT_OUT:
            uid = bytes(data).decode()
            with self._lock:
                is_news = held.left.pop(uid, None) is not None
            if is_news:
                self._finish(worker, held, [Outcome(uid, TaskState.CANCELED)])
        elif kind is Kind.GIVEN_BACK:
            with self._lock:
                uids = [uid for uid in bytes(data).decode().split("\n") if held.left.pop(uid, None) is not None]
            canceled = [Outcome(uid, TaskState.CANCELED) for uid in uids if uid in self._stopping]
            self._finish(worker, held, [*canceled, Returned([uid for uid in uids if uid not in self._stopping])])
        elif kind is Kind.END:  # nothing is left of it, or its worker has kept an end to itself
            self._fail_rest(
                worker, held, WorkerLostError(f"{self._name}: a worker did not report the end of this task")
            )

    def not_sent(self, worker: Worker, batch: int, error: Exception) -> None:
        """Fail a batch that could not be sent."""
        held = worker.held
        if held is not None and held.batch.uid == batch:
            self._fail_rest(worker, held, SubmitError(f"{self._name}: a batch could not be sent to a worker: {error}"))

    def count_changed(self, up: int) -> None:
        """Report how many workers are up, and use them."""
        self._changed(up)
        self._assign()

    def worker_lost(self, worker: Worker, code: int) -> None:
        """Settle what a dead worker held."""
        with self._lock:
            held, worker.held = worker.held, None
        if held is None:
            return
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        why = f"the worker process that ran it on {self._name} died ({how}); whether it had any effect is unknown"
        record = self._processes.record
        begun: set[str] | None = None if held.is_sent else set()  # None: each may have
        if record is not None:
            count = record.begun().get(held.batch.uid, 0) if held.is_sent else 0
            begun = {task.uid for task in held.batch.shipped[:count]}
            kept = held.batch.decode(record.kept(held.batch.uid))
            self._report([outcome for outcome in kept if held.left.pop(outcome.uid, None) is not None])
        self._report(settle_lost(held.batch, held.ended(), begun, self._stopping.keys(), why=why))
        self._processors.release(held.claim)
        self._assign()

    # -- what comes back ---------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return f"backend {self._context.backend!r}"

    def _fail_rest(self, worker: Worker, held: HeldBatch, error: Exception) -> None:
        with self._lock:
            left, held.left = held.left, {}
        self._finish(worker, held, [Outcome(uid, TaskState.FAILED, exception=error) for uid in left])

    def _finish(self, worker: Worker, held: HeldBatch, events: Sequence[Event]) -> None:
        """Report, and where nothing is left of the batch give its worker and its processor to the next."""
        is_over = not held.left
        if is_over:
            with self._lock:
                if worker.held is held:
                    worker.held, worker.idle_since = None, time.monotonic()
        self._report(events)
        if is_over:
            self._processors.release(held.claim)
            self._assign()

    def _report(self, events: Sequence[Event]) -> None:
        """Report, and notify those who wait for the end of a task that they stop; from any thread."""
        self._context.events.put(events)
        for event in events if self._stopping else ():
            if isinstance(event, Outcome) and (end := self._stopping.pop(event.uid, None)) is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                    self._context.loop.call_soon_threadsafe(_set_result, end, event.state)


def _set_result(end: asyncio.Future[TaskState], state: TaskState) -> None:
    if not end.done():
        end.set_result(state)
