"""Runs tasks in threads of this process, which pull from one queue: nothing waits behind anything else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Final, Literal

from rhapsody import worker
from rhapsody.backends.local.shares import LAUNCHERS, in_ranks, launcher
from rhapsody.errors import SubmitError, TaskExecutionError
from rhapsody.model.kinds import EXECUTABLE, FUNCTION
from rhapsody.model.outcome import CancelResult, Outcome, Returned, Started
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.protocol.batch import encode_tasks
from rhapsody.protocol.command import command_of
from rhapsody.protocol.failures import failure_of
from rhapsody.protocol.outcomes import outcome_of, outcome_of_command
from rhapsody.protocol.trace import TRACE, trace_of
from rhapsody.seam.channel import Event
from rhapsody.seam.context import BackendContext
from rhapsody.worker import executables
from rhapsody.worker.guard_process import Guard
from rhapsody.worker.prints import Prints
from rhapsody.worker.seeding import seeded
from rhapsody.worker.shortage import warn
from rhapsody.worker.tracing import traced

_SOON: Final = 0.005  # seconds: tasks that end within these are not reported to have started
_LATE: Final = 0.05  # seconds between two checks for started tasks, where nothing changes
_DONE: Final = TaskState.DONE


class _Place:
    """What one thread runs."""

    def __init__(self, ran_on: str) -> None:
        self.ran_on = ran_on
        self.running: tuple[str, float] | None = None  # uid and start of a task
        self.reported: tuple[str, float] | None = None  # the task with its start, once that was reported


class ThreadLane:
    """A queue of tasks, and threads that pull from it: daemon threads of its own, or a caller's executor.

    Daemon threads, because a function that never returns must not keep the interpreter from ending.

    Args:
        slots: threads.
        context: of the backend.
        guard: watches the executables.
        executor: whose threads to use; it is never shut down here, and is left alone while there is nothing to run.
    """

    def __init__(
        self, slots: int, context: BackendContext, guard: Guard, executor: ThreadPoolExecutor | None = None
    ) -> None:
        self._slots = slots
        self._context = context
        self._guard = guard
        self._executor = executor
        self._queue: SimpleQueue[ComputeTask | None] = SimpleQueue()
        self._waiting: dict[str, ComputeTask] = {}  # who pops a task from here, a worker or a canceler, has it
        self._environments: dict[str, Mapping[str, str]] = {}  # of executables that ask for resources
        self._lock = threading.Lock()
        self._pullers = 0
        self._threads: list[threading.Thread] = []
        self._places: list[_Place] = []
        self._next_check: asyncio.TimerHandle | None = None

    def submit(self, tasks: Sequence[ComputeTask], environments: Mapping[str, Mapping[str, str]]) -> None:
        """Queue tasks; `environments` are variables by uid, for those that do not run in this process.

        Raises:
            SubmitError: no thread can be had, or the caller has shut the executor down.
        """
        for task in tasks:
            self._waiting[task.uid] = task
            if environments and task.kind is not FUNCTION:
                self._environments[task.uid] = environments[task.uid]
        for task in tasks:
            self._queue.put(task)
        if self._next_check is None:
            self._next_check = self._context.loop.call_later(_SOON, self._report_starts, _SOON)
        try:
            if self._executor is not None:
                self._ask_for_threads(self._executor, len(tasks))
            else:
                self._start_threads(len(tasks))
        except RuntimeError as error:
            for task in tasks:
                self._waiting.pop(task.uid, None)
            owner = "its threads" if self._executor is None else "the executor given to it"
            raise SubmitError(f"backend {self._context.backend!r}: {owner} can take no work: {error}") from error

    def cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Take back what has not started, and stop running executables. Blocks until those have ended."""
        results: dict[str, CancelResult] = {}
        running: list[ComputeTask] = []
        outcomes: list[Event] = []
        for task in tasks:
            if self._waiting.pop(task.uid, None) is not None:
                self._environments.pop(task.uid, None)
                results[task.uid] = CancelResult.NEVER_STARTED
                outcomes.append(Outcome(task.uid, TaskState.CANCELED))
            elif task.kind is EXECUTABLE:
                running.append(task)
            else:
                results[task.uid] = CancelResult.CANNOT_STOP
        self._context.events.put(outcomes)
        keys = {(self._context.session, task.uid): task for task in running}
        stopped = executables.stop(keys)
        for key, task in keys.items():
            results[task.uid] = CancelResult.STOPPED if key in stopped else CancelResult.CANNOT_STOP
        return results

    def withdraw(self, tasks: Sequence[ComputeTask]) -> None:
        """Give back what has not started; on the loop's thread."""
        taken = [task.uid for task in tasks if self._waiting.pop(task.uid, None) is not None]
        left: list[ComputeTask | None] = []
        with contextlib.suppress(Empty):  # a task may come here again, behind others
            while True:
                left.append(self._queue.get_nowait())
        for task in left:
            if task is None or task.uid in self._waiting:
                self._queue.put(task)
        for uid in taken:
            self._environments.pop(uid, None)
        self._context.events.put([Returned(taken)])
        if self._executor is not None and self._waiting:
            self._ask_again(None)

    def close(self) -> list[threading.Thread]:
        """Let the threads end. Returns those of its own, of which one may be in a function that does not return."""
        if self._next_check is not None:
            self._next_check.cancel()
        self._waiting.clear()
        for _ in self._threads:
            self._queue.put(None)
        return self._threads

    def _start_threads(self, tasks: int) -> None:
        """Start threads for this many tasks; one is enough, should the system give no more."""
        for _ in range(min(self._slots - len(self._threads), tasks)):
            name = f"rhapsody {self._context.backend} {len(self._threads)}"
            thread = threading.Thread(target=self._work, args=(self._queue.get,), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                if self._threads:  # the others run what waits
                    warn(OSError(errno.EAGAIN, str(error)))
                    return
                raise
            self._threads.append(thread)

    def _ask_for_threads(self, executor: ThreadPoolExecutor, tasks: int) -> None:
        """Ask for threads for this many tasks; one is enough, should the executor give no more."""
        with self._lock:
            wanted = min(self._slots - self._pullers, tasks)
            self._pullers += wanted
        for started in range(wanted):
            try:
                future = executor.submit(self._pull)
            except RuntimeError:
                with self._lock:
                    self._pullers -= wanted - started
                    left = self._pullers
                if left:
                    return
                raise
            future.add_done_callback(self._pulled)

    def _pull(self) -> None:
        """Work until the queue is empty, then give the executor its thread back."""
        self._work(self._queue.get_nowait)

    def _pulled(self, future: Future[None]) -> None:
        """A thread was given back; or never came, because the caller has canceled what waits or the pool is broken."""
        with self._lock:
            self._pullers -= 1
        if self._waiting and not self._queue.empty():
            try:  # a task came in since the last check; not from here, where the executor may hold its lock
                self._context.loop.call_soon_threadsafe(self._ask_again, not future.cancelled() and future.exception())
            except RuntimeError:  # the loop is closed: nobody waits for these tasks
                pass

    def _ask_again(self, problem: BaseException | Literal[False] | None) -> None:
        assert self._executor is not None
        try:
            if problem:
                raise RuntimeError(str(problem))
            self._ask_for_threads(self._executor, len(self._waiting))
        except RuntimeError as error:
            text = f"the executor given to backend {self._context.backend!r} takes no more work: {error}"
            while self._waiting:
                uid, _ = self._waiting.popitem()
                self._context.events.put([Outcome(uid, TaskState.FAILED, exception=SubmitError(text))])

    def _report_starts(self, waited: float) -> None:
        """Report, on the loop, tasks that have been running for a while: the end of a short one says it all.

        A place is empty before the end of its task is put, so what is found here has not been reported as ended:
        put in front, the start comes before the end.
        """
        found: list[Event] = []
        for place in self._places:
            running = place.running
            if running is not None and running is not place.reported:
                place.reported = running
                found.append(Started(running[0], running[1], place.ran_on))
        if found:
            self._context.events.put_first(found)
        if not found and not self._waiting:
            if waited < 0:  # nothing was found twice: a thread may have been between taking a task and starting it
                self._next_check = None
                return
            waited = -_SOON
        else:
            waited = _SOON if found or waited < 0 else min(2 * waited, _LATE)
        self._next_check = self._context.loop.call_later(abs(waited), self._report_starts, waited)

    def _work(self, get: Callable[[], ComputeTask | None]) -> None:
        put, claim, poll = self._context.events.put, self._waiting.pop, self._queue.get_nowait
        place = _Place(worker.where())
        self._places.append(place)
        events: list[Event] = []
        try:
            with worker.AsyncFunctions() as loops:
                while True:
                    try:
                        task = poll() if events else get()
                    except Empty:
                        if not events:
                            return
                        put(events)
                        events.clear()
                        continue
                    if task is None:
                        put(events)
                        return
                    kind = task.kind
                    if kind is EXECUTABLE:
                        executables.announce((self._context.session, task.uid))
                    if claim(task.uid, None) is None:  # it was canceled
                        if kind is EXECUTABLE:
                            executables.retract((self._context.session, task.uid))
                        continue
                    if events:
                        put(events, False)
                        events.clear()
                    started = time.time()
                    place.running = (task.uid, started)
                    call = self._call_with_prints if task.capture_stdio else self._call
                    run = call if kind is FUNCTION else self._run if kind is EXECUTABLE else self._run_encoded
                    events.append(run(task, started, loops, place.ran_on))
                    place.running = None
                    del task  # a waiting thread must not keep it alive
        finally:
            self._places.remove(place)

    def _call_with_prints(
        self, task: ComputeTask, started: float, loops: worker.AsyncFunctions, ran_on: str
    ) -> Outcome:
        """Call a function, and keep what it prints."""
        with Prints() as prints:
            outcome = self._call(task, started, loops, ran_on, prints)
        outcome.stdout, outcome.stderr = prints.texts
        return outcome

    def _call(
        self,
        task: ComputeTask,
        started: float,
        loops: worker.AsyncFunctions,
        ran_on: str,
        prints: Prints | None = None,
    ) -> Outcome:
        assert task.function is not None
        try:
            function = task.function if task.seed is None else seeded(task.function, task.seed, 0)
            if task.context is not None and task.context.get(TRACE) is not None and (trace := trace_of(task)):
                function = traced(function, trace, task.uid)
            if prints is not None:
                function = prints.around(function)
            value = worker.run_function(function, task.args, task.kwargs, loops, task.context)
        except BaseException as error:
            failure = failure_of(task.uid, error)
            return Outcome(
                task.uid,
                TaskState.FAILED,
                exception=failure,
                exit_code=failure.exit_code if isinstance(failure, TaskExecutionError) else None,  # of sys.exit
                started_at=started,
                ended_at=time.time(),
                ran_on=ran_on,
            )
        # By position, which takes half as long: started_at, ended_at, ran_on.
        return Outcome(task.uid, _DONE, value, None, None, None, None, None, None, started, time.time(), ran_on)

    def _run_encoded(self, task: ComputeTask, started: float, _: worker.AsyncFunctions, ran_on: str) -> Outcome:
        """Run a task of a further kind, as a worker process does."""
        given = {task.uid: self._environments.pop(task.uid, {})}
        payload, refused = encode_tasks([task], self._context.session, self._context.sandbox_path, given)
        if refused:
            error = refused[0][1]
            return Outcome(task.uid, TaskState.FAILED, exception=error, started_at=started, ended_at=time.time())
        (frame,) = worker.frames(worker.run_batch(payload))
        return outcome_of(frame, ran_on)

    def _run(self, task: ComputeTask, started: float, _: worker.AsyncFunctions, ran_on: str) -> Outcome:
        try:
            command = command_of(task, self._context.sandbox_path, self._environments.pop(task.uid, None))
            if task.resources is not None and task.resources.ranks > 1:
                command = in_ranks(command, task.resources.ranks, launcher() or LAUNCHERS[0])
            finished = executables.run((self._context.session, task.uid), command, self._guard)
        except BaseException as error:
            failure = failure_of(task.uid, error)
            return Outcome(task.uid, TaskState.FAILED, exception=failure, started_at=started, ended_at=time.time())
        paths = (command.stdout_path, command.stderr_path)
        return outcome_of_command(task.uid, finished, paths, started, time.time(), ran_on)
