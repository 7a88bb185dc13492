"""What the Dragon backends have in common: the runtime that they share, its loss, and the two parts that run tasks.

A backend has workers, and most have a launcher of jobs too; both take their processors from one count.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from rhapsody.errors import BackendConfigurationError, BackendLostError, UnsupportedError
from rhapsody.plugin import (
    BackendContext,
    BackendLost,
    CancelResult,
    Capacity,
    ComputeTask,
    Deadlines,
    ExecutionBackend,
    FileStore,
    TaskBatch,
    hookimpl,
)

from . import runtime
from .job_launcher import JobLauncher
from .processors import Processors, Site, claim_of, runtime_nodes
from .runtime import START_DEADLINE
from .task_options import check, is_plain
from .worker_group import WorkerGroup

Result = TypeVar("Result")
_warned: set[type] = set()  # once in this process

#: Seconds between two tries to end a start that is no longer wanted, and two checks of whether the runtime is lost.
STOP_SECONDS: Final = 1.0
#: Seconds for what the backend started to end once the runtime is lost: whatever waits for an answer waits for good.
LOST_SECONDS: Final = 5.0


class DragonBackend(ExecutionBackend):
    """Acquires the runtime of this process at the start, runs tasks on it, and gives it back at the end.

    `workers` is None for the runtime's processors, `slots`, the processes at the same time, for these or the workers
    where they are more, and `folder` for the current one. `telemetry` lets a runtime that is started here sample.
    """

    has_jobs: ClassVar[bool] = True  # whether tasks that are not for a worker are jobs
    is_latest: ClassVar[bool] = False  # whether nothing else is recommended in its place
    interface_version = 1
    deadlines = Deadlines(init=START_DEADLINE + 80.0, cancel=20.0, shutdown=90.0)

    def __init__(
        self,
        name: str,
        *,
        workers: int | None,
        slots: int | None = None,
        folder: str | None = None,
        telemetry: bool = True,
        batching: Any = None,
        max_in_flight: int | None = None,
    ) -> None:
        super().__init__(name, batching=batching, max_in_flight=max_in_flight)
        self._workers, self._slots = workers, slots
        self._folder = folder
        self._telemetry = telemetry
        self._context: BackendContext | None = None
        self._runtime: runtime.DragonRuntime | None = None
        self._acquiring: asyncio.Future[runtime.DragonRuntime] | None = None
        self._starting: asyncio.Future[None] | None = None
        self._give_up = threading.Event()
        self._processors: Processors | None = None
        self._group: WorkerGroup | None = None
        self._launcher: JobLauncher | None = None

    # -- its life ----------------------------------------------------------------------------------------------------

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        """Acquire the runtime, then start what this backend needs on it; both in a thread."""
        self._context = context
        if not self.is_latest and type(self) not in _warned:
            _warned.add(type(self))
            context.log.warning("dragon_v3_is_recommended", backend=self.name, instead_of=type(self).__name__)
        self._give_up = threading.Event()
        self._acquiring = in_thread(partial(runtime.acquire, telemetry=self._telemetry), self._waits_for, self._give_up)
        # Shielded: a thread cannot be interrupted, and what it acquires must reach the shutdown, which waits for it.
        self._runtime = await asyncio.shield(self._acquiring)
        self._starting = in_thread(self._start, context, self._runtime)
        self._runtime.on_lost(self._on_lost)
        await asyncio.shield(self._starting)

    def _start(self, context: BackendContext, dragon: runtime.DragonRuntime) -> None:
        if dragon.home is not None:  # a runtime of our own
            context.warn_of_one_node("to use all, start the script by Dragon's launcher: `dragon my_script.py`")
        nodes = runtime_nodes()
        total = sum(node.processors for node in nodes)
        workers = self._workers or total
        slots = self._slots or max(workers, total)
        site = Site(context, dragon, Processors(nodes, slots), self._folder or str(Path.cwd()))
        self._processors = site.processors
        context.store = FileStore(None if self._processors.is_one_node else context.sandbox_path / "stored")
        if self.has_jobs:
            self._launcher = JobLauncher(site)
        self._waits_for("the worker processes")

        def changed(up: int) -> None:
            context.set_capacity(Capacity(slots=up, units=max(up, slots if self.has_jobs else 0)))

        self._group = WorkerGroup(workers, site, changed)
        self._group.start()

    @hookimpl
    async def rhapsody_shutdown(self, wait: bool) -> None:
        """End what still runs, and the runtime if it is ours and nobody else uses it."""
        self._give_up.set()
        if self._acquiring is not None:
            await asyncio.wait([self._acquiring])
            if self._acquiring.exception() is None:  # otherwise its start has reported why
                self._runtime = self._acquiring.result()
            self._acquiring = None
        held = self._runtime
        if held is None:
            return
        try:
            await self._end_all(held)
        finally:
            held.forget(self._on_lost)
            self._runtime = self._starting = self._group = self._launcher = self._processors = None
            await in_thread(runtime.release, held)

    async def _end_all(self, held: runtime.DragonRuntime) -> None:
        """End what was started, again and again while `_start` goes on starting."""
        while True:
            starting = self._starting
            is_last = starting is None or starting.done()
            await self._end_started(held)
            if starting is None or is_last:
                return
            await asyncio.wait([starting], timeout=STOP_SECONDS)

    async def _end_started(self, held: runtime.DragonRuntime) -> None:
        stopping = in_thread(self._stop)
        until = math.inf
        while not stopping.done() and time.monotonic() < until:
            await asyncio.wait([stopping], timeout=STOP_SECONDS)
            if held.lost is not None:
                until = min(until, time.monotonic() + LOST_SECONDS)
        if stopping.done():
            stopping.result()
        else:
            assert self._context is not None
            self._context.log.warning("stop_abandoned", backend=self.name, why="the Dragon runtime does not answer")

    def _stop(self) -> None:
        """End the workers and the jobs; in a thread, also while `_start` runs or the runtime is lost."""
        try:
            if self._launcher is not None:
                self._launcher.close()
        finally:
            if self._group is not None:
                self._group.close()

    def _on_lost(self, error: BackendLostError) -> None:
        if self._group is not None:
            self._group.wake()
        assert self._context is not None
        self._context.events.put([BackendLost(BackendLostError(f"backend {self.name!r}: {error}"))])
        if (starting := self._starting) is not None:  # its thread may wait for an answer of the runtime for good
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                starting.get_loop().call_soon_threadsafe(_settle, starting, None, error)

    def _waits_for(self, what: str) -> None:
        assert self._context is not None
        self._context.log.info("backend_waits_for", backend=self.name, what=what)

    # -- tasks -------------------------------------------------------------------------------------------------------

    def is_for_worker(self, task: ComputeTask) -> bool:
        """Whether a worker runs a task; otherwise it is a job."""
        return is_plain(task)

    @hookimpl
    def rhapsody_validate(self, tasks: Sequence[ComputeTask]) -> None:
        """Refuse what Dragon cannot be given, or would wait for without end."""
        known = self.capabilities.options or frozenset()
        for task in tasks:
            check(task, self.name, known)
            if self._processors is None or self.is_for_worker(task):
                continue
            claim, nodes = claim_of(task), self._processors.nodes
            if not self._processors.can_ever_grant(claim):
                gpus = sum(len(node.gpus) for node in nodes)
                raise UnsupportedError(
                    f"task {task.uid}: backend {self.name!r} has {self._processors.count} slots and {gpus} GPUs on "
                    f"{len(nodes)} node(s), and cannot run {claim.ranks} ranks of {claim.cores} core(s) and "
                    f"{claim.gpus:g} GPU(s) at once; ask for less, or start it on more nodes"
                )

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        """Give plain tasks to the workers, and others to the launcher.

        Raises:
            UnsupportedError: it was accepted before it was known how many processors there are, and needs more.
        """
        if self.is_for_worker(batch.tasks[0]):
            assert self._group is not None
            self._group.submit(batch)
        else:
            assert self._launcher is not None
            self.rhapsody_validate(batch.tasks)
            self._launcher.submit(batch)

    @hookimpl
    async def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Stop what can be stopped, wherever it is."""
        parts: dict[bool, list[ComputeTask]] = {True: [], False: []}
        for task in tasks:
            parts[self.is_for_worker(task)].append(task)
        results: dict[str, CancelResult] = {}
        if parts[False] and self._launcher is not None:
            results |= await self._launcher.cancel(parts[False])
        if parts[True] and self._group is not None:
            results |= await self._group.cancel(parts[True])
        return results

    @hookimpl
    def rhapsody_withdraw(self, tasks: Sequence[ComputeTask]) -> None:
        """Take back what waits in batches of the workers behind a long task."""
        if self._group is not None:
            self._group.withdraw(tasks)


def in_thread(function: Callable[..., Result], *args: Any) -> asyncio.Future[Result]:
    """Call a function in a thread that nobody waits for, neither the loop nor Python when they end.

    A request to a Dragon runtime that has died waits for good.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def run() -> None:
        result, problem = None, None
        try:
            result = function(*args)
        except BaseException as error:
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            loop.call_soon_threadsafe(_settle, future, result, problem)

    threading.Thread(target=run, name="rhapsody-dragon-call", daemon=True).start()
    return future


def _settle(future: asyncio.Future[Any], result: Any, problem: BaseException | None) -> None:
    if future.done():
        return
    if problem is None:
        future.set_result(result)
    else:
        future.set_exception(problem)
        future.exception()  # seen: whoever waited may be gone


def read_resources(resources: Mapping[str, Any] | None, name: str) -> tuple[int | None, str | None]:
    """Read `resources={"slots": N, "working_dir": ...}`; both may be left out.

    Raises:
        BackendConfigurationError: another key, or an unusable value.
    """
    known = dict(resources or {})
    slots, folder = known.pop("slots", None), known.pop("working_dir", None)
    if known:
        raise BackendConfigurationError(
            f"backend {name!r} has no resources {', '.join(map(repr, known))}; it has 'slots' and 'working_dir'"
        )
    check_count("slots", slots, name)
    if folder is not None and not isinstance(folder, str | Path):
        raise BackendConfigurationError(f"backend {name!r}: working_dir must be a path, not {folder!r}")
    return slots, None if folder is None else str(Path(folder).absolute())


def check_count(what: str, value: Any, name: str) -> None:
    """Refuse what is neither None nor a whole number above 0."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise BackendConfigurationError(f"backend {name!r}: {what} must be a whole number above 0, not {value!r}")
