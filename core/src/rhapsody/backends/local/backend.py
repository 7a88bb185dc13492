"""The local backend: functions and executables on this machine, in threads, processes or an executor of yours."""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import cached_property
from typing import Any, Final, TypeVar, cast

from rhapsody.backends.base import ExecutionBackend
from rhapsody.backends.local import machine
from rhapsody.backends.local.executors import ExecutorLane
from rhapsody.backends.local.pool.lane import ProcessLane
from rhapsody.backends.local.pool.options import WorkerOptions
from rhapsody.backends.local.shares import LAUNCHERS, environments_of, launcher
from rhapsody.backends.local.threads import ThreadLane
from rhapsody.errors import BackendConfigurationError, UnsupportedError, describe
from rhapsody.hookspecs import hookimpl
from rhapsody.model.kinds import EXECUTABLE
from rhapsody.model.outcome import CancelResult
from rhapsody.model.resources import Resources
from rhapsody.model.task import ComputeTask
from rhapsody.protocol.batch import TaskBatch
from rhapsody.protocol.store import FileStore
from rhapsody.scheduling.backlog import Backlog
from rhapsody.seam.capabilities import BackendCapabilities, Batching
from rhapsody.seam.capacity import Capacity
from rhapsody.seam.context import BackendContext
from rhapsody.worker import executables, shortage
from rhapsody.worker.guard_process import Guard

T = TypeVar("T")
_OWN: Final = ("threads", "processes")  # executors of the backend's own

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
        first, second: the executor, and the name, without their keywords, as in
            `ConcurrentExecutionBackend(ThreadPoolExecutor(), "mine")`. The name may come first where the executor is
            given too; a text alone that is no executor is taken for the name, with a warning.
        executor: "threads" (the default) or "processes", of the backend's own; or a ThreadPoolExecutor, a
            ProcessPoolExecutor or any other `concurrent.futures.Executor`, which is used and never shut down.
        name: the name under which tasks choose the backend. Default: "concurrent".
        max_workers: tasks at the same time. Default: the executor's own number, else the cores of this machine that
            the program may use. More of them than there are cores make cores of them.
        gpus: the GPUs that tasks share, numbered from 0. Default: those of CUDA_VISIBLE_DEVICES, of
            ROCR_VISIBLE_DEVICES, or those that nvidia-smi finds.
        batching: how functions are grouped on their way to processes; see `rhapsody.api.Batching`.
        max_in_flight: tasks that run or wait for a worker at the same time, at most; see `ExecutionBackend`.
        initializer: called by each process of "processes" before its first task; if it raises, every task there fails.
        initargs: its arguments.
        environment: variables of these processes beside the program's; None as a value removes one.
        max_tasks_per_child: function tasks that such a process runs, at most, before another takes its place.
        link_files: under a workflow engine each executable runs in a folder of its own, and finds the files of the
            tasks before it there, as links. Otherwise all run in one folder, and see each other's files.

    Raises:
        BackendConfigurationError: an argument that makes no sense.

    What tasks share, by their `Resources`, is never given to two at once: cores, GPUs, and the memory of this machine
    or of the program's cgroup. A task that asks for resources finds its GPUs in CUDA_VISIBLE_DEVICES and
    ROCR_VISIBLE_DEVICES, and its number of threads in OMP_NUM_THREADS and the variables of OpenBLAS, MKL and NumExpr.
    An executable of several ranks is started by mpiexec, mpirun or srun.
    """

    def __init__(
        self,
        first: str | Executor | None = None,
        second: str | Executor | None = None,
        /,
        max_workers: int | None = None,
        *,
        executor: str | Executor | None = None,
        name: str | None = None,
        gpus: int | None = None,
        batching: Batching | Mapping[str, Any] | bool | float | None = None,
        max_in_flight: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Sequence[Any] = (),
        environment: Mapping[str, str | None] | None = None,
        max_tasks_per_child: int | None = None,
        link_files: bool = False,
    ) -> None:
        executor, name = _executor_and_name(first, second, executor, name)
        super().__init__(name, batching=batching, max_in_flight=max_in_flight)
        self._link_files(link_files)
        if executor not in _OWN and not isinstance(executor, Executor):
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
        if gpus is not None and (isinstance(gpus, bool) or not isinstance(gpus, int) or gpus < 0):
            raise BackendConfigurationError(
                f"backend {name!r}: gpus must be a whole number from 0, not {describe(gpus)}"
            )
        self._options = WorkerOptions(initializer, initargs, environment, max_tasks_per_child)
        self._options.check(name, executor)
        self._executor = executor
        self._slots = max_workers or _width(executor) or machine.cores()
        self._given_gpus = gpus
        in_threads = executor == "threads" or isinstance(executor, ThreadPoolExecutor)
        self.capabilities = BackendCapabilities(
            remote=not in_threads,
            cancel_functions=executor == "processes",
            cancel_executables=True,
            streams=in_threads or executor == "processes",
            ranks=True,
            cores_per_rank=True,
            gpus=True,
            memory=True,
            nodes=True,
            exclusive=True,
            keep_results=in_threads,
            shared_data=not in_threads and isinstance(executor, str | ProcessPoolExecutor),
        )
        self._guard = Guard()
        self._context: BackendContext | None = None
        self._threads: ThreadLane | None = None
        self._lane: ProcessLane | ExecutorLane | None = None  # None: functions run in the threads too

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        """Make the lanes."""
        self._context = context
        self._lane = None
        context.warn_of_one_node(
            "to use all, name the backend 'dask' with cluster=, or 'dragon' in a script that its launcher starts"
        )
        shortage.make_room(self._slots)
        if self.capabilities.shared_data:
            context.store = FileStore()
        if self._executor == "threads":
            self._threads = ThreadLane(self._slots, context, self._guard)
        elif isinstance(self._executor, ThreadPoolExecutor):
            self._threads = ThreadLane(self._slots, context, self._guard, self._executor)
        else:
            self._threads = ThreadLane(self._slots, context, self._guard)
            if isinstance(self._executor, Executor):
                self._lane = ExecutorLane(self._executor, context)
            else:
                self._lane = ProcessLane(self._slots, context, self._guard, self._options)
                await self._lane.start()
        context.set_capacity(await _in_thread(lambda: self._capacity))  # nvidia-smi takes its time

    @hookimpl
    def rhapsody_validate(self, tasks: Sequence[ComputeTask]) -> None:
        """Refuse resources that this machine does not have, or cannot give to such a task."""
        for task in tasks:
            if task.resources is not None and (problem := self._why_not(task, task.resources)) is not None:
                raise UnsupportedError(f"task {task.uid}: backend {self.name!r}: {problem}")

    @hookimpl
    def rhapsody_batch(self, backlog: Backlog) -> Sequence[ComputeTask] | None:
        """Take thousands of plain tasks at a time for the threads; leave all others to the default."""
        if self._lane is not None or backlog.peek().resources is not None:
            return None
        return backlog.take(_IN_FLIGHT // 2)

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        """Put a batch into a lane."""
        assert self._threads is not None
        environments = environments_of(batch, self._gpus) if batch.tasks[0].resources is not None else {}
        if self._lane is None or batch.tasks[0].kind is EXECUTABLE:
            self._threads.submit(batch.tasks, environments)
        else:
            self._lane.submit(batch, environments)

    @hookimpl
    async def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Take back what has not started; stop executables, and functions in processes."""
        assert self._threads is not None
        threads = self._threads
        in_lane = [task for task in tasks if self._lane is not None and task.kind is not EXECUTABLE]
        in_threads = [task for task in tasks if self._lane is None or task.kind is EXECUTABLE]
        results: dict[str, CancelResult] = {}
        if isinstance(self._lane, ProcessLane):
            results |= await self._lane.cancel(in_lane)
        elif self._lane is not None:
            results |= self._lane.cancel(in_lane)
        if in_threads:
            results |= await _in_thread(lambda: threads.cancel(in_threads))
        return results

    @hookimpl
    async def rhapsody_withdraw(self, tasks: Sequence[ComputeTask]) -> None:
        """Give back what has not begun; of an executor that is the caller's own, nothing."""
        assert self._threads is not None
        if isinstance(self._lane, ProcessLane):
            await self._lane.withdraw(tasks)
        elif self._lane is None:
            self._threads.withdraw(tasks)

    @hookimpl
    async def rhapsody_shutdown(self) -> None:
        """Stop executables and processes, and let the threads end; a caller's executor is left as it is."""
        context, threads, lane = self._context, self._threads, self._lane
        self._context = self._threads = self._lane = None
        if context is None or threads is None:
            return
        own = threads.close()
        running = [key for key in executables.running() if key[0] == context.session]
        if running:
            await _in_thread(lambda: executables.stop(running))
        if isinstance(lane, ProcessLane):
            await lane.close()
        elif lane is not None:
            lane.close()
        deadline = time.monotonic() + _LINGER
        while any(thread.is_alive() for thread in own) and time.monotonic() < deadline:  # noqa: ASYNC110  # no event
            await asyncio.sleep(0.002)
        await _in_thread(self._guard.close)

    @cached_property
    def _gpus(self) -> tuple[str, ...]:
        """Return the names of the GPUs that tasks share."""
        return machine.gpus() if self._given_gpus is None else tuple(map(str, range(self._given_gpus)))

    @cached_property
    def _capacity(self) -> Capacity:
        """What tasks share; the same before the start, when they are validated, and after it."""
        in_threads = self._executor == "threads" or isinstance(self._executor, ThreadPoolExecutor)
        spare = self._slots if isinstance(self._executor, Executor) else 0  # kept ready at a caller's executor
        return Capacity(
            self._slots,
            units=None if in_threads else self._slots + spare,
            tasks=_IN_FLIGHT if in_threads else None,
            cores=max(self._slots, machine.cores()),
            gpus=len(self._gpus),
            memory=machine.memory(),
        )

    def _why_not(self, task: ComputeTask, resources: Resources) -> str | None:
        """Say why a task cannot be given what it asks for; None if it can."""
        is_function = task.kind is not EXECUTABLE
        if resources.nodes is not None and resources.nodes > 1:
            return (
                f"this machine is one node, not {resources.nodes}; leave nodes out, or use an engine that has several"
            )
        if resources.ranks > 1 and is_function:
            return "a function runs in one process; make it an executable, or leave ranks out"
        if resources.ranks > 1 and launcher() is None:
            looked_for = " nor ".join(LAUNCHERS)
            return f"{resources.ranks} ranks need an MPI, and neither {looked_for} is on PATH or beside Python"
        if resources.gpus_per_rank and is_function and not self.capabilities.remote:
            return (
                "threads share their variables, and so a function in a thread has no GPU of its own; use "
                "executor='processes'"
            )
        return self._capacity.lacks(resources)


def _executor_and_name(first: Any, second: Any, executor: Any, name: Any) -> tuple[Any, Any]:
    """Return the executor and the name from arguments with and without keywords."""
    if isinstance(second, Executor) or (second in _OWN and isinstance(first, str)):
        first, second = second, first
    elif second is None and name is None and isinstance(first, str) and (executor is not None or first not in _OWN):
        if executor is None:
            warnings.warn(
                f"{first!r} is no executor ('threads' and 'processes' are) and was taken for the backend's name: write "
                f"name={first!r}",
                RuntimeWarning,
                stacklevel=3,
            )
        first, second = None, first
    for key, positional, keyword in (("executor", first, executor), ("name", second, name)):
        if positional is not None and keyword is not None:
            raise BackendConfigurationError(
                f"ConcurrentExecutionBackend: {key} is given twice: {describe(positional)}, {describe(keyword)}"
            )
    executor = first if executor is None else executor
    name = second if name is None else name
    return "threads" if executor is None else executor, "concurrent" if name is None else name


def _width(executor: str | Executor) -> int | None:
    """Return how many workers a standard executor was made with; which it does not make public."""
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
