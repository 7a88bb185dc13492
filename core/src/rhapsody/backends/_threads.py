"""Runs tasks in threads of this process, which pull from one queue: nothing waits behind anything else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any

from .. import _executable, worker
from .._guard import Guard
from ..batch import command_of, failure_of, outcome_of_command
from ..context import BackendContext
from ..errors import SubmitError
from ..events import CancelResult, Event, Outcome, Started
from ..states import TaskState
from ..task import ComputeTask


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
        self._lock = threading.Lock()
        self._pullers = 0
        self._threads: list[threading.Thread] = []

    def submit(self, tasks: Sequence[ComputeTask]) -> None:
        """Queue tasks.

        Raises:
            SubmitError: the caller has shut the executor down.
        """
        for task in tasks:
            self._waiting[task.uid] = task
        for task in tasks:
            self._queue.put(task)
        if self._executor is not None:
            self._ask_for_threads(self._executor, tasks)
        else:
            for _ in range(min(self._slots - len(self._threads), len(tasks))):
                name = f"rhapsody {self._context.backend} {len(self._threads)}"
                thread = threading.Thread(target=self._work, args=(self._queue.get,), name=name, daemon=True)
                self._threads.append(thread)
                thread.start()

    def cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Take back what has not started, and stop running executables. Blocks until those have ended."""
        results: dict[str, CancelResult] = {}
        running: list[ComputeTask] = []
        outcomes: list[Event] = []
        for task in tasks:
            if self._waiting.pop(task.uid, None) is not None:
                results[task.uid] = CancelResult.NEVER_STARTED
                outcomes.append(Outcome(task.uid, TaskState.CANCELED))
            elif task.function is None:
                running.append(task)
            else:
                results[task.uid] = CancelResult.CANNOT_STOP
        self._context.events.put(outcomes)
        keys = {(self._context.session, task.uid): task for task in running}
        stopped = _executable.stop(keys)
        for key, task in keys.items():
            results[task.uid] = CancelResult.STOPPED if key in stopped else CancelResult.CANNOT_STOP
        return results

    def close(self) -> list[threading.Thread]:
        """Let the threads end. Returns those of its own, of which one may be in a function that does not return."""
        self._waiting.clear()
        for _ in self._threads:
            self._queue.put(None)
        return self._threads

    def _ask_for_threads(self, executor: ThreadPoolExecutor, tasks: Sequence[ComputeTask]) -> None:
        with self._lock:
            wanted = min(self._slots - self._pullers, len(tasks))
            self._pullers += wanted
        for started in range(wanted):
            try:
                executor.submit(self._pull)
            except RuntimeError as error:
                with self._lock:
                    self._pullers -= wanted - started
                    left = self._pullers
                if not left:  # nobody is there to run them
                    for task in tasks:
                        self._waiting.pop(task.uid, None)
                    raise SubmitError(
                        f"the executor given to backend {self._context.backend!r} takes no more work: {error}"
                    ) from error
                return

    def _pull(self) -> None:
        """Work until the queue is empty, then give the executor its thread back."""
        self._work(self._queue.get_nowait)
        with self._lock:
            self._pullers -= 1
            more = bool(self._waiting) and not self._queue.empty()
        if more:  # a task came in between the last look and the step back
            assert self._executor is not None
            self._ask_for_threads(self._executor, list(self._waiting.values()))

    def _work(self, get: Callable[[], ComputeTask | None]) -> None:
        put, claim = self._context.events.put, self._waiting.pop
        events: list[Event] = []
        with worker.AsyncFunctions() as loops:
            while True:
                try:
                    task = self._queue.get_nowait() if events else get()
                except Empty:
                    if not events:
                        return
                    put(events)
                    events = []
                    continue
                if task is None:
                    put(events)
                    return
                if claim(task.uid, None) is None:  # it was canceled
                    continue
                started = time.time()
                events.append(Started(task.uid, started, worker.where()))
                put(events)
                events = [self._run(task, started, loops)]
                del task  # a waiting thread must not keep it alive

    def _run(self, task: ComputeTask, started: float, loops: worker.AsyncFunctions) -> Outcome:
        if task.function is None:
            command = command_of(task, self._context.sandbox_path)
            finished = _executable.run((self._context.session, task.uid), command, self._guard)
            paths = (command.stdout_path, command.stderr_path)
            return outcome_of_command(task.uid, finished, paths, started, time.time(), worker.where())
        value: Any = None
        try:
            value = worker.run_function(task.function, task.args, task.kwargs, loops)
        except BaseException as error:
            failure = failure_of(task.uid, error)
            return Outcome(task.uid, TaskState.FAILED, exception=failure, started_at=started, ended_at=time.time())
        return Outcome(task.uid, TaskState.DONE, value, started_at=started, ended_at=time.time())
