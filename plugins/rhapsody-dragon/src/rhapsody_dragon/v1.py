"""`dragon_v1`: a Dragon process, or a group of them for several ranks, for each task."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

from rhapsody.errors import TaskCanceledError, TaskExecutionError, UnsupportedError, WorkerLostError
from rhapsody.plugin import (
    BackendCapabilities,
    BackendContext,
    Backlog,
    CancelResult,
    Capacity,
    ComputeTask,
    Outcome,
    Started,
    TaskBatch,
    TaskState,
    hookimpl,
)

from .alone import COMMAND, pack
from .backend import DragonBackend, node_policies, read_resources
from .jobs import Job, Slots
from .local import wait_for_end
from .options import Launch, check, ranks_of
from .programs import GRACE, Gate, Program, marker_of, root_of, signal_task, stop_task
from .runtime import DragonRuntime
from .v2 import warn_once

#: Seconds for which a process is awaited through Dragon, which is quick, before it is awaited through its pidfd.
SOON: Final = 0.3
#: Seconds for which a pidfd is awaited, before Dragon is asked again.
LOOK_SECONDS: Final = 2.0
#: Processes that are started ahead of their turn.
AHEAD: Final = 8
#: Seconds for the processes that still run at the end to be gone.
END_DEADLINE: Final = 5.0


class DragonExecutionBackendV1(DragonBackend):
    """Runs each task in a Dragon process of its own, for isolation; an executable of several ranks in a ProcessGroup.

    An executable costs 17 to 28 ms, a function about 0.3 s, since it starts an interpreter. V3 runs both far cheaper:
    it is recommended unless each function needs a process of its own.

    Args:
        resources: `slots`, how many processes run at the same time (default: the processors of the runtime's nodes;
            a task of several ranks takes as many), and `working_dir`, where they run (default: the current folder).
        name: the name under which tasks choose the backend.

    `backend_options` of a task: `timeout` in seconds, and `pmi` for several ranks ("cray", which is Dragon's own
    default, "pmix" or None). Canceling a program sends SIGTERM to every process of the task on this node, and SIGKILL
    after three seconds; a function's process gets SIGKILL at once. What they leave running in the background ends
    with them. On other nodes Dragon signals the processes that it started itself, and the rest ends with the runtime.

    Raises:
        BackendConfigurationError: unknown resources, or unusable values.
    """

    capabilities = BackendCapabilities(
        cancel_functions=True, cancel_executables=True, ranks=True, options=frozenset({"timeout", "pmi"})
    )

    def __init__(self, resources: Mapping[str, Any] | None = None, name: str = "dragon_v1") -> None:
        super().__init__(name, batching=False)
        self._count, self._folder = read_resources(resources, name)
        self._most = self._count  # None until it is known how many processors there are
        self._jobs: dict[int, Job] = {}
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._ended = False

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        """Acquire the runtime."""
        warn_once(type(self).__name__, context)
        self._ended = False
        await self._open(context)

    def _start(self, dragon: DragonRuntime) -> None:
        assert self._context is not None
        processors, self._policies = node_policies()
        self._here = not self._policies
        count = self._count or processors
        self._slots, self._most = Slots(count), count
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._threads = 0  # that serve the queue; daemons, since a join never ends where the runtime has died
        self._scratch = tempfile.TemporaryDirectory(
            prefix="rhapsody-dragon-", dir=dragon.home or self._context.sandbox, ignore_cleanup_errors=True
        )
        self._context.set_capacity(Capacity(slots=count, units=count + min(count, AHEAD) if self._here else count))

    @hookimpl
    def rhapsody_validate(self, tasks: Sequence[ComputeTask]) -> None:
        """Refuse what a Dragon process cannot be given."""
        for task in tasks:
            check(task, self.name, frozenset({"timeout", "pmi"}))
            if self._most is not None and ranks_of(task) > self._most:
                raise UnsupportedError(
                    f"task {task.uid}: backend {self.name!r} has {self._most} slots and cannot run {ranks_of(task)} "
                    f"ranks at once; give it more with resources={{'slots': ...}}"
                )

    @hookimpl
    def rhapsody_batch(self, backlog: Backlog) -> Sequence[ComputeTask]:
        """Take one task: each has a process of its own."""
        return backlog.take(1)

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        """Give the task to a thread that runs it and waits for its end.

        Raises:
            UnsupportedError: it was accepted before it was known how many slots there are, and has too many ranks.
        """
        self.rhapsody_validate(batch.tasks)
        job = self._jobs[batch.uid] = Job(batch, batch.tasks[0])
        if len(self._jobs) > self._threads:
            name = f"rhapsody {self.name} {self._threads}"
            threading.Thread(target=self._serve, args=(self._queue,), name=name, daemon=True).start()
            self._threads += 1
        self._queue.put(job)

    # -- one task ----------------------------------------------------------------------------------------------------

    def _serve(self, queue: SimpleQueue[Job | None]) -> None:
        """Run one task after the other. Dragon takes a third longer to start the first process of each thread."""
        while (job := queue.get()) is not None:
            self._run(job)

    def _run(self, job: Job) -> None:
        try:
            if job.task.function is not None:
                self._run_function(job)
            else:
                self._run_program(job)
        except OSError as error:  # of its files: its program, its folder, its name
            self._report(job, _failed(job, TaskExecutionError(job.task.uid, None, reason=str(error))))
        except Exception as error:
            reason = f"Dragon did not run it: {type(error).__name__}: {error}"
            self._report(job, _failed(job, TaskExecutionError(job.task.uid, None, reason=reason)))

    @contextlib.contextmanager
    def _slot(self, job: Job, *, wait: bool = True) -> Iterator[bool]:
        """Hold the slots of a task; False if it is no longer to begin."""
        ranks = ranks_of(job.task)
        begins = self._slots.acquire(ranks, job, lambda: self._ended, wait=wait)
        try:
            yield begins
        finally:
            if begins:
                self._slots.release(ranks)

    def _run_function(self, job: Job) -> None:
        payload = job.batch.encode()
        if not job.batch.shipped:
            self._forget_job(job)  # its end has been reported
            return
        source, target = (self._folder_of_files() / f"{job.batch.uid}.{kind}" for kind in ("task", "end"))
        source.write_bytes(pack(payload, sys.path))
        try:
            code = self._run_one(job, lambda gate: self._interpreter(job, source, target, gate))
            outcomes = job.batch.decode(target.read_bytes()) if target.exists() else []
        finally:
            for file in (source, target, target.with_suffix(".part")):
                file.unlink(missing_ok=True)
        if code is None:
            outcomes = [_canceled(job)]
        elif not outcomes:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            outcomes = [_failed(job, WorkerLostError(f"task {job.task.uid}: the process that ran it died ({how})"))]
            self._explain(job, outcomes[0])
        self._report(job, outcomes[0])

    def _interpreter(self, job: Job, source: Path, target: Path, gate: Gate | None) -> Any:
        """Return the process of a function, which is to be started."""
        from dragon.infrastructure.process_desc import ProcessOptions
        from dragon.native.process import Process

        return Process(
            target=sys.executable,
            args=["-c", COMMAND, str(source), str(target), *([] if gate is None else [gate.path])],
            cwd=self._folder or ".",
            env={**os.environ, **self._marker(job)},
            stdout=Process.DEVNULL,
            stderr=Process.DEVNULL,
            policy=self._policy(job),
            options=ProcessOptions(make_inf_channels=True),  # so that the function may use Dragon
        )

    def _run_program(self, job: Job) -> None:
        assert self._context is not None
        folder = self._context.sandbox if job.task.capture_stdio else self._folder_of_files()
        program = Program(job.task, self._context.session, folder)
        where = self._folder or str(Path.cwd())
        try:
            if ranks_of(job.task) == 1:
                code = self._run_one(job, lambda gate: self._process(job, program.plan(where, gate)[0]))
            else:
                code = self._run_group(job, program.plan(where))
        except BaseException:
            program.remove()
            raise
        if code is None:
            program.remove()
            self._report(job, _canceled(job))
            return
        outcome = program.outcome(code, job.started_at, self._ran_on(job))
        if job.canceled or job.timed_out:
            outcome.state = TaskState.FAILED
            self._explain(job, outcome)
        self._report(job, outcome)

    def _process(self, job: Job, launch: Launch) -> Any:
        """Return the process of a program, which is to be started."""
        from dragon.native.process import Process

        return Process(target=launch.target, args=list(launch.args), **{"policy": self._policy(job), **launch.keywords})

    def _run_one(self, job: Job, make: Callable[[Gate | None], Any]) -> int | None:
        """Run one process to its end, and return its exit code; None if it was canceled before it began.

        On this node it is started ahead, while others have the slots, and waits at a gate: Dragon takes 13 ms to start
        a process, and an interpreter is not ready for another 0.3 s.
        """
        with contextlib.ExitStack() as stack:
            gate = None
            if self._here and not stack.enter_context(self._slot(job, wait=False)):
                gate = stack.enter_context(Gate(self._folder_of_files() / f"{job.batch.uid}.gate"))
            job.process = make(gate)
            if gate is not None:
                job.process.start()
            if not job.begun and not stack.enter_context(self._slot(job)):
                if gate is not None:
                    self._signal(job, signal.SIGKILL)
                    job.process.join()
                return None
            if gate is None:
                job.process.start()
            else:
                gate.open()
            self._has_started(job)
            return self._join(job)

    def _run_group(self, job: Job, plan: Sequence[Launch]) -> int | None:
        """Run several processes to their end, and return the first exit code that is not 0; None as above."""
        with self._slot(job) as begins:
            return self._start_group(job, plan) if begins else None

    def _start_group(self, job: Job, plan: Sequence[Launch]) -> int:
        from dragon.infrastructure.facts import PMIBackend
        from dragon.native.process import ProcessTemplate
        from dragon.native.process_group import ProcessGroup

        options = job.task.backend_options or {}
        pmi = options.get("pmi", "cray")
        job.group = ProcessGroup(
            restart=False, ignore_error_on_exit=True, pmi=None if pmi is None else PMIBackend.from_str(pmi)
        )
        for launch in plan:
            template = ProcessTemplate(target=launch.target, args=list(launch.args), **launch.keywords)
            job.group.add_process(nproc=launch.processes, template=template)
        job.group.init()
        try:
            job.group.start()
            self._has_started(job)
            try:
                job.group.join(timeout=options.get("timeout"))
            except TimeoutError:
                job.timed_out = True
                self._end_processes(job, job.joined)
                job.group.join(timeout=END_DEADLINE)
            codes = [code for _, code in job.group.inactive_puids]
        finally:
            job.group.close()
        return next((code for code in codes if code), 0)

    def _join(self, job: Job) -> int:
        """Wait for the end of the process, and return its exit code."""
        timeout = (job.task.backend_options or {}).get("timeout")
        until = math.inf if timeout is None else time.monotonic() + timeout
        code = job.process.join(timeout=min(SOON, timeout or SOON))
        root = root_of(self._marker(job)) if code is None and self._here else None
        while code is None and (left := until - time.monotonic()) > 0:
            if root is not None:
                wait_for_end(root, min(left, LOOK_SECONDS))  # it may be a child, if the process ended just before
                code = job.process.join(timeout=min(left, SOON))
            else:
                code = job.process.join(timeout=None if left == math.inf else left)
        if code is None:
            job.timed_out = True
            self._end_processes(job, job.joined)
            code = job.process.join()
        return int(code)

    def _has_started(self, job: Job) -> None:
        assert self._context is not None
        job.started_at = time.time()
        self._context.events.put([Started(job.task.uid, job.started_at, self._ran_on(job))])
        if job.canceled or self._ended:  # it was asked for while the process was on its way
            self._end_processes(job, job.joined)

    def _folder_of_files(self) -> Path:
        assert self._scratch is not None
        return Path(self._scratch.name)

    def _marker(self, job: Job) -> dict[str, str]:
        assert self._context is not None
        return marker_of(self._context.session, job.task.uid)

    def _policy(self, job: Job) -> Any:
        return self._policies[job.batch.uid % len(self._policies)] if self._policies else None

    def _ran_on(self, job: Job) -> str | None:
        return socket.gethostname() if self._here else None

    # -- what comes back ---------------------------------------------------------------------------------------------

    @staticmethod
    def _explain(job: Job, outcome: Outcome) -> None:
        """Say why a task was ended by us, where it was."""
        if job.canceled:
            outcome.state = TaskState.CANCELED
            outcome.exception = TaskCanceledError(f"task {job.task.uid} was canceled while it ran")
        elif job.timed_out:
            timeout = (job.task.backend_options or {}).get("timeout")
            outcome.exception = TimeoutError(f"task {job.task.uid} did not end within {timeout:g} seconds")

    def _report(self, job: Job, outcome: Outcome) -> None:
        if not job.reported:
            job.reported = True
            assert self._context is not None
            self._context.events.put([outcome])
            if self._here:
                signal_task(self._marker(job), signal.SIGKILL)  # what it left in the background
        self._forget_job(job)

    def _forget_job(self, job: Job) -> None:
        self._jobs.pop(job.batch.uid, None)
        job.over.set()

    # -- stopping ----------------------------------------------------------------------------------------------------

    @hookimpl
    async def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """End the processes of tasks."""
        uids = {task.uid for task in tasks}
        jobs = [job for job in list(self._jobs.values()) if job.task.uid in uids]
        self._slots.cancel(jobs)
        running = [job for job in jobs if job.begun]
        await asyncio.gather(*(asyncio.to_thread(self._end_processes, job, job.over.wait) for job in running))
        results = {job.task.uid: CancelResult.STOPPED for job in running}
        waiting = {job.task.uid: CancelResult.NEVER_STARTED for job in jobs if not job.begun}
        return dict.fromkeys(uids, CancelResult.TOO_LATE) | waiting | results

    def _end_processes(self, job: Job, over: Callable[[float], bool]) -> None:
        """SIGTERM to a task's processes, and SIGKILL to what is left after a grace; blocks until then.

        `over(seconds)` waits for their end; not for the task's, in the thread that would end it.
        """
        first = signal.SIGTERM if job.task.function is None else signal.SIGKILL
        if self._here:
            stop_task(self._marker(job), first, over)
            return
        self._signal(job, first)
        over(GRACE)
        self._signal(job, signal.SIGKILL)

    def _signal(self, job: Job, number: signal.Signals) -> None:
        """Through Dragon, which reaches the processes that it started itself, on any node."""
        for target in (job.process, job.group):
            try:
                if target is not None:
                    target.send_signal(number)
            except Exception:  # Dragon says so when it has ended already
                pass

    @hookimpl
    async def rhapsody_shutdown(self, wait: bool) -> None:
        """End what still runs, and the runtime if it is ours and nobody else uses it."""
        await self._close()

    def _stop(self) -> None:
        self._ended = True
        if self._scratch is None:
            return
        for _ in range(self._threads):
            self._queue.put(None)
        self._slots.cancel(())  # wakes who waits
        if self._runtime is None or self._runtime.lost is None:
            jobs = list(self._jobs.values())
            for job in jobs:
                signal_task(self._marker(job), signal.SIGKILL) if self._here else self._signal(job, signal.SIGKILL)
            until = time.monotonic() + END_DEADLINE
            for job in jobs:
                job.over.wait(max(0.0, until - time.monotonic()))
        self._scratch.cleanup()
        self._scratch = None


def _failed(job: Job, error: Exception) -> Outcome:
    return Outcome(job.task.uid, TaskState.FAILED, exception=error, started_at=job.started_at, ended_at=time.time())


def _canceled(job: Job) -> Outcome:
    error = TaskCanceledError(f"task {job.task.uid} was canceled before it started")
    return Outcome(job.task.uid, TaskState.CANCELED, exception=error)
