"""The local backend: functions and executables on this machine, in threads, processes or an executor of yours."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, Final, TypeVar, cast

from .. import _executable
from .._guard import Guard
from .._marker import hookimpl
from ..batch import TaskBatch
from ..batching import Backlog
from ..capabilities import BackendCapabilities, Batching
from ..context import BackendContext
from ..errors import BackendConfigurationError, describe
from ..events import CancelResult, Capacity
from ..task import ComputeTask
from ._executors import ExecutorLane
from ._processes import ProcessLane
from ._threads import ThreadLane
from .base import ExecutionBackend

T = TypeVar("T")

# Tasks in the hands of the threads: enough that these seldom wait for the loop, and so few that most outcomes are gone
# before the garbage collector has taken them for something that stays (then a million tasks cost half as much again).
_IN_FLIGHT: Final = 2048
_LINGER: Final = 0.5  # seconds that idle threads have to end at shutdown; one in a function that hangs is left behind


class ConcurrentExecutionBackend(ExecutionBackend):
    """Runs tasks on this machine.

    Functions run where `executor` says. Executables always run as processes of this machine, at most `max_workers`
    at a time. In threads, tasks share memory with the program and nothing is pickled; a function that runs cannot be
    stopped. In processes, functions, arguments and results are pickled (by cloudpickle where pickle cannot), and a
    function that runs can be stopped.

    Args:
        name: the name under which tasks choose the backend.
        executor: "threads" (the default) or "processes", of the backend's own; or a ThreadPoolExecutor, a
            ProcessPoolExecutor or any other `concurrent.futures.Executor`, which is used and never shut down.
        max_workers: tasks at the same time. Default: the executor's own number, else the processors of this machine
            that the program may use.
        batching: how functions are grouped on their way to processes; see `rhapsody.api.Batching`.

    Raises:
        BackendConfigurationError: an executor or max_workers that makes no sense.
    """

    def __init__(
        self,
        name: str = "concurrent",
        executor: str | Executor | None = None,
        max_workers: int | None = None,
        *,
        batching: Batching | Mapping[str, Any] | bool | float | None = None,
    ) -> None:
        super().__init__(name, batching=batching)
        if executor is None:
            executor = "threads"
        if executor not in ("threads", "processes") and not isinstance(executor, Executor):
            raise BackendConfigurationError(
                f"backend {name!r}: executor must be 'threads', 'processes' or a concurrent.futures.Executor, "
                f"not {describe(executor)}"
            )
        if max_workers is not None and (
            isinstance(max_workers, bool) or not isinstance(max_workers, int) or max_workers < 1
        ):
            raise BackendConfigurationError(
                f"backend {name!r}: max_workers must be a positive whole number, not {describe(max_workers)}"
            )
        self._executor = executor
        self._slots = max_workers or _width(executor) or _processors()
        in_threads = executor == "threads" or isinstance(executor, ThreadPoolExecutor)
        self.capabilities = BackendCapabilities(
            remote=not in_threads,
            cancel_functions=executor == "processes",
            cancel_executables=True,
        )
        self._guard = Guard()
        self._context: BackendContext | None = None
        self._threads: ThreadLane | None = None
        self._units: ProcessLane | ExecutorLane | None = None  # None: functions run in the threads too

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        """Make the lanes."""
        self._context = context
        self._units = None
        if self._executor == "threads":
            self._threads = ThreadLane(self._slots, context, self._guard)
        elif isinstance(self._executor, ThreadPoolExecutor):
            self._threads = ThreadLane(self._slots, context, self._guard, self._executor)
        else:
            self._threads = ThreadLane(self._slots, context, self._guard)
            if isinstance(self._executor, Executor):
                self._units = ExecutorLane(self._executor, context)
            else:
                self._units = ProcessLane(self._slots, context, self._guard)
                await self._units.start()
        if self._units is None:
            context.set_capacity(Capacity(self._slots, tasks=_IN_FLIGHT))
        else:
            spare = self._slots if isinstance(self._units, ExecutorLane) else 0
            context.set_capacity(Capacity(self._slots, units=self._slots + spare))

    @hookimpl
    def rhapsody_batch(self, backlog: Backlog) -> Sequence[ComputeTask] | None:
        """Take thousands of tasks at a time for the threads; leave units for processes to the default."""
        return backlog.take(_IN_FLIGHT // 2) if self._units is None else None

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        """Put a batch into a lane."""
        assert self._threads is not None
        if self._units is None or batch.tasks[0].function is None:
            self._threads.submit(batch.tasks)
        else:
            self._units.submit(batch)

    @hookimpl
    async def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Take back what has not started; stop executables, and functions in processes."""
        assert self._threads is not None
        threads = self._threads
        in_units = [task for task in tasks if self._units is not None and task.function is not None]
        in_threads = [task for task in tasks if self._units is None or task.function is None]
        results: dict[str, CancelResult] = {}
        if isinstance(self._units, ProcessLane):
            results |= await self._units.cancel(in_units)
        elif self._units is not None:
            results |= self._units.cancel(in_units)
        if in_threads:
            results |= await _in_thread(lambda: threads.cancel(in_threads))
        return results

    @hookimpl
    async def rhapsody_shutdown(self) -> None:
        """Stop executables and processes, and let the threads end; a caller's executor is left as it is."""
        context, threads, units = self._context, self._threads, self._units
        self._context = self._threads = self._units = None
        if context is None or threads is None:
            return
        own = threads.close()
        running = [key for key in _executable.running() if key[0] == context.session]
        if running:
            await _in_thread(lambda: _executable.stop(running))
        if isinstance(units, ProcessLane):
            await units.close()
        elif units is not None:
            units.close()
        deadline = time.monotonic() + _LINGER
        while any(thread.is_alive() for thread in own) and time.monotonic() < deadline:  # noqa: ASYNC110  # no event
            await asyncio.sleep(0.002)
        await _in_thread(self._guard.close)


def _processors() -> int:
    """Return how many processors the program may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _width(executor: str | Executor) -> int | None:
    """Return how many workers a standard executor was made with; it has no public way to tell."""
    if isinstance(executor, ThreadPoolExecutor | ProcessPoolExecutor):
        width: int = executor._max_workers  # type: ignore[union-attr]  # not public
        return width
    return None


async def _in_thread(call: Callable[[], T]) -> T:
    """Await a blocking call, made in a daemon thread: the loop's own executor would keep its threads for good."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if not done.done():
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(cast("T", value))

    def work() -> None:
        value: T | None = None
        failure: BaseException | None = None
        try:
            value = call()
        except BaseException as error:
            failure = error
        try:
            loop.call_soon_threadsafe(settle, value, failure)
        except RuntimeError:  # the loop is closed: nobody waits for this any more
            pass

    thread = threading.Thread(target=work, name="rhapsody blocking call", daemon=True)
    thread.start()
    value = await done
    thread.join(1.0)  # it has nothing left to do
    return value
