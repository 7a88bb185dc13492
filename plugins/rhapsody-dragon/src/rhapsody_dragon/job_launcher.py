"""Runs each task as a job of its own: a native Process of Dragon, or a ProcessGroup where it has several ranks.

A thread starts the processes of a job and waits for their end. A job waits for its processors, of which each rank takes
as many as it asks for; Dragon's Policy places the ranks on nodes, and gives them their GPUs. The processes of a job are
known by a variable in their environment, however they were started and whoever is their parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final
from urllib.parse import quote

from rhapsody.errors import TaskCanceledError, TaskExecutionError, WorkerLostError
from rhapsody.plugin import FUNCTION, CancelResult, ComputeTask, Outcome, Started, TaskBatch, TaskState

from .exit_watch import marked, root_of, wait_for_end
from .processors import Claim, Processors, Seat, Site, claim_of, policy_of
from .task_options import JobFiles, Launch, ranks_of

#: Seconds from SIGTERM to SIGKILL for an executable that is stopped.
GRACE: Final = 3.0
#: The variable.
MARKER: Final = "RHAPSODY_DRAGON_TASK"
#: Seconds for which a process is awaited through Dragon, which is quick, before it is awaited through its pidfd.
SOON: Final = 0.3
#: Seconds for which a pidfd is awaited, before Dragon is asked again.
CHECK_SECONDS: Final = 2.0
#: Seconds for the processes that still run at the end to be gone.
END_DEADLINE: Final = 5.0


class Job:
    """A task, alone in its batch, that has processes of its own."""

    def __init__(self, batch: TaskBatch, session: str, processors: Processors) -> None:
        self.batch = batch
        self.task = batch.tasks[0]
        self.options = self.task.backend_options or {}
        self.mark = f"{session}/{quote(self.task.uid, safe='')}"
        self.here = processors.is_one_node
        self.started_at: float | None = None
        self.begun = self.canceled = self.timed_out = False
        self.over = threading.Event()
        self._nodes = processors.nodes
        self._may_go_on = threading.Event()  # it has its processors, or is canceled
        self.wake, self.wait_for_turn = self._may_go_on.set, self._may_go_on.wait
        self.claim: Claim = claim_of(self.task, granted=self.wake)
        self._process: Any = None
        self._group: Any = None
        self._code: int | None = None  # of the process, once it has ended

    def start(self, plan: Sequence[Launch]) -> None:
        """Start its processes."""
        policies = [policy_of(self._nodes[seat.node], seat.gpus, self.here) for seat in self.claim.seats]
        if ranks_of(self.task) > 1 or self.options.get("pmi"):
            self._start_group(plan, policies)
            return
        from dragon.infrastructure.process_desc import ProcessOptions
        from dragon.native.process import Process

        (launch,) = plan
        keywords = {"policy": policies[0], **launch.keywords}
        if self.task.kind is FUNCTION:
            keywords.setdefault("options", ProcessOptions(make_inf_channels=True))  # so that it may use Dragon
        process = Process(target=launch.target, args=list(launch.args), **keywords)
        process.start()
        self._process = process

    def _start_group(self, plan: Sequence[Launch], policies: Sequence[Any]) -> None:
        from dragon.infrastructure.facts import PMIBackend
        from dragon.native.process import ProcessTemplate
        from dragon.native.process_group import ProcessGroup

        pmi = self.options.get("pmi", "cray")
        self._group = ProcessGroup(
            restart=False, ignore_error_on_exit=True, pmi=None if pmi is None else PMIBackend.from_str(pmi)
        )
        for count, launch, policy in shares(plan, self.claim.seats, policies):
            keywords = {"policy": policy, **launch.keywords}
            template = ProcessTemplate(target=launch.target, args=list(launch.args), **keywords)
            self._group.add_process(nproc=count, template=template)
        self._group.init()
        self._group.start()

    def join(self) -> int:
        """Wait for the end, which comes by force where its time is over; returns the first exit code other than 0."""
        timeout = self.options.get("timeout")
        try:
            if not self._ends_in(math.inf if timeout is None else timeout):
                self.timed_out = True
                self.stop(self._joined)
                self._joined(END_DEADLINE)
            codes = [self._code] if self._group is None else [code for _, code in self._group.inactive_puids]
        finally:
            if self._group is not None:
                self._group.close()
        return next((code for code in codes if code), 0)

    def _ends_in(self, seconds: float) -> bool:
        until, pid = time.monotonic() + seconds, None
        is_seen = self.here and self._group is None
        while (left := until - time.monotonic()) > 0:
            if self._joined(min(left, SOON) if is_seen else left):
                return True
            if is_seen and (pid := pid or root_of(marked(MARKER, self.mark))) is not None:
                wait_for_end(pid, min(left, CHECK_SECONDS))
        return False

    def _joined(self, seconds: float) -> bool:
        """Wait for the end through Dragon, in the one thread that does."""
        timeout = None if seconds == math.inf else seconds
        if self._group is None:
            self._code = self._process.join(timeout=timeout)
            return self._code is not None
        with contextlib.suppress(TimeoutError):
            self._group.join(timeout=timeout)
            return True
        return False

    def stop(self, over: Callable[[float], bool] | None = None) -> None:
        """Send SIGTERM to its processes, or SIGKILL to a function's, and SIGKILL after a grace to what is left.

        Blocks until then. `over(seconds)` waits for the end of the job; without it, for that of its processes, as the
        thread must that would end the job.
        """
        self.send(signal.SIGKILL if self.task.kind is FUNCTION else signal.SIGTERM)
        (over or self._joined)(GRACE)
        self.send(signal.SIGKILL)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to its processes: on this node whatever they started, on others what Dragon started."""
        if self.here:
            for pid in marked(MARKER, self.mark):
                with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                    os.kill(pid, number)
            return
        for target in filter(None, (self._process, self._group)):
            with contextlib.suppress(Exception):  # Dragon says so when it has ended already
                target.send_signal(number)

    def explained(self, outcome: Outcome) -> Outcome:
        """Say why it was ended by us, where it was."""
        if self.canceled:
            outcome.state = TaskState.CANCELED
            outcome.exception = TaskCanceledError(f"task {self.task.uid} was canceled while it ran")
        elif self.timed_out:
            limit = f"{self.options['timeout']:g} seconds"
            outcome.state = TaskState.FAILED
            outcome.exception = TimeoutError(f"task {self.task.uid} did not end within {limit}")
        return outcome

    def failed(self, error: Exception) -> Outcome:
        """Return the outcome of a job that left none."""
        now = time.time()
        return Outcome(self.task.uid, TaskState.FAILED, exception=error, started_at=self.started_at, ended_at=now)


def shares(plan: Sequence[Launch], seats: Sequence[Seat], policies: Sequence[Any]) -> Iterator[tuple[int, Launch, Any]]:
    """Yield a number of ranks that are alike, what they run, and their policy, in the order of the ranks."""
    start = 0
    for launch in plan:
        for _, alike in groupby(range(start, start + launch.processes), key=lambda rank: seats[rank]):
            ranks = list(alike)
            yield len(ranks), launch, policies[ranks[0]]
        start += launch.processes


class JobLauncher:
    """Runs jobs, and stops them."""

    def __init__(self, site: Site) -> None:
        self._context, self._runtime, self._processors, self._folder = site
        self._ran_on = socket.gethostname() if self._processors.is_one_node else None
        self._jobs: dict[int, Job] = {}
        self._lock = threading.Lock()  # held while it is decided whether a job begins or is canceled
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._threads = 0  # that serve the queue; daemons, since a join never ends where the runtime has died
        self._ended = False
        self._scratch = tempfile.TemporaryDirectory(
            prefix="rhapsody-dragon-", dir=self._runtime.home or self._context.sandbox, ignore_cleanup_errors=True
        )

    def submit(self, batch: TaskBatch) -> None:
        """Give the one task of a batch to a thread that runs it and waits for its end."""
        job = self._jobs[batch.uid] = Job(batch, self._context.session, self._processors)
        self._processors.claim(job.claim)
        if len(self._jobs) > self._threads:
            name = f"rhapsody {self._context.backend} {self._threads}"
            threading.Thread(target=self._serve, name=name, daemon=True).start()
            self._threads += 1
        self._queue.put(job)

    # -- one job -----------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Run one job after the other. Dragon takes a third longer to start the first process of each thread."""
        while (job := self._queue.get()) is not None:
            self._run(job)

    def _run(self, job: Job) -> None:
        try:
            outcome = self._outcome(job)
        except Exception as error:  # of its files: its executable, its folder, its name; or of Dragon
            of_files = isinstance(error, OSError)
            reason = str(error) if of_files else f"Dragon did not run it: {type(error).__name__}: {error}"
            outcome = job.failed(TaskExecutionError(job.task.uid, None, reason=reason))
        self._processors.release(job.claim)
        if outcome is not None:
            self._context.events.put([outcome])
            if job.begun and job.here:
                job.send(signal.SIGKILL)  # to what it left in the background
        self._jobs.pop(job.batch.uid, None)
        job.over.set()

    def _outcome(self, job: Job) -> Outcome | None:
        """Run a job to its end; None where its task cannot travel, which has been reported."""
        uid, is_function, captured = job.task.uid, job.task.kind is FUNCTION, job.task.capture_stdio
        payload = job.batch.encode() if is_function else b""
        if not job.batch.shipped:
            return None
        job.wait_for_turn()
        with self._lock:
            job.begun = bool(job.claim.seats) and not job.canceled and not self._ended
        if not job.begun:
            error = TaskCanceledError(f"task {uid} was canceled before it started")
            return Outcome(uid, TaskState.CANCELED, exception=error)
        folder = self._context.sandbox if captured else Path(self._scratch.name)
        files = JobFiles(job.task, folder, quote(uid, safe="") if captured else str(job.batch.uid))
        try:
            job.start(files.plan(self._folder, {MARKER: job.mark}, payload))
            job.started_at = time.time()
            self._context.events.put([Started(uid, job.started_at, self._ran_on)])
            if job.canceled or self._ended:  # it was asked for while the processes were on their way
                job.stop()
            code = job.join()
            if not is_function:
                return job.explained(files.outcome(code, job.started_at, self._ran_on))
            if outcomes := job.batch.decode(files.frames()):
                return outcomes[0]
        finally:
            files.remove()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return job.explained(job.failed(WorkerLostError(f"task {uid}: the process that ran it died ({how})")))

    # -- stopping ----------------------------------------------------------------------------------------------------

    async def cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """End the processes of jobs; those that have not begun never will."""
        uids = {task.uid for task in tasks}
        jobs = [job for job in list(self._jobs.values()) if job.task.uid in uids]
        with self._lock:
            for job in jobs:
                job.canceled = True
            running = [job for job in jobs if job.begun]
        for job in jobs:
            job.wake()
        await asyncio.gather(*(asyncio.to_thread(job.stop, job.over.wait) for job in running))
        results = dict.fromkeys(uids, CancelResult.TOO_LATE)
        results |= {job.task.uid: CancelResult.NEVER_STARTED for job in jobs}
        return results | {job.task.uid: CancelResult.STOPPED for job in running}

    def close(self) -> None:
        """End what still runs; bounded in time. May be called again."""
        with self._lock:
            self._ended = True
        for _ in range(self._threads):
            self._queue.put(None)
        jobs = list(self._jobs.values())
        for job in jobs:
            job.wake()
        if self._runtime.lost is None:
            for job in jobs:
                job.send(signal.SIGKILL)
            until = time.monotonic() + END_DEADLINE
            for job in jobs:
                job.over.wait(max(0.0, until - time.monotonic()))
        self._scratch.cleanup()
