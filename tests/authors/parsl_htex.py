"""A backend on Parsl's HighThroughputExecutor: an engine with futures, whose results come through files as they end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD, HighThroughputExecutor
from parsl.providers import LocalProvider
from rhapsody.errors import BackendConfigurationError, UnsupportedError
from rhapsody.plugin import (
    BackendCapabilities,
    BackendContext,
    CancelResult,
    Capacity,
    ComputeTask,
    Deadlines,
    ExecutionBackend,
    FileJobs,
    TaskBatch,
    hookimpl,
)
from rhapsody.worker import run_file

HTEX = "parsl.executors.high_throughput."


def end_of(future: Any) -> str | None:
    """Return how a call of Parsl's ended; None where it has not."""
    return f"its call ended with {future.exception()!r}" if future.done() else None


class ParslExecutionBackend(ExecutionBackend):
    """Runs batches on the workers of one HighThroughputExecutor on this machine.

    Args:
        name: the name under which tasks choose the backend.
        workers: processes of Parsl's, each of which runs one batch at a time.
        options: of every backend, such as `batching`.

    Raises:
        BackendConfigurationError: fewer than one worker.
    """

    interface_version = 1
    deadlines = Deadlines(init=120, shutdown=60)
    capabilities = BackendCapabilities(
        cancel_functions=True, cancel_executables=True, batch_executables=True, options={"priority"}
    )

    def __init__(self, name: str = "parsl", workers: int = 2, **options: Any) -> None:
        super().__init__(name, **options)
        if workers < 1:
            raise BackendConfigurationError(f"backend {name!r}: workers must be at least 1, not {workers!r}")
        self._workers = workers
        self._engine: Any = None

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        """Start the executor in a thread; what it starts is marked, so that the guard can end it."""
        self._context, self._jobs = context, FileJobs(context)
        await context.in_thread(self._start)
        while not self._engine.connected_blocks():
            self._check_engine()
            await asyncio.sleep(0.1)
        context.set_capacity(Capacity(slots=self._workers))
        context.poll(0.02, self.poll_jobs)

    def _start(self) -> None:
        self._engine = HighThroughputExecutor(
            provider=LocalProvider(init_blocks=1, max_blocks=1),
            address="127.0.0.1",
            max_workers_per_node=self._workers,
            cores_per_worker=1e-3,
            heartbeat_period=1,  # seconds; so the loss of a worker is known a second later
            encrypted=False,
            launch_cmd=DEFAULT_LAUNCH_CMD.replace(
                "process_worker_pool.py", f"{sys.executable} -m {HTEX}process_worker_pool"
            ),
            interchange_launch_cmd=[sys.executable, "-m", f"{HTEX}interchange"],  # which need not be on the PATH
        )
        self._engine.run_dir = self._engine.provider.script_dir = str(self._jobs.folder)
        with self._context.guard.marking():
            self._engine.start()
            self._engine.scale_out_facade(1)

    def _check_engine(self) -> None:
        if self._engine.interchange_proc.poll() is not None:
            raise RuntimeError(f"the interchange has ended with {self._engine.interchange_proc.returncode}")
        if self._engine.bad_state_is_set:
            raise RuntimeError(f"the executor gave up: {self._engine.executor_exception}")

    @hookimpl
    def rhapsody_validate(self, tasks: Sequence[ComputeTask]) -> None:
        """Refuse a priority that is none."""
        for task in tasks:
            priority = (task.backend_options or {}).get("priority", 0)
            if not isinstance(priority, int | float):
                raise UnsupportedError(
                    f"task {task.uid}: backend {self.name!r} takes a number as 'priority', not {priority!r}"
                )

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        """Have a worker run the batch from one file into another; a task with options is a batch of its own."""
        source, target = self._jobs.write(batch)
        future = self._engine.submit(run_file, batch.tasks[0].backend_options, str(source), str(target))
        call = f"{self._engine.run_id or 'htex'}.{future.parsl_executor_task_id}"
        self._jobs.follow(batch, lambda: end_of(future), native_id=call, logs=self._engine.worker_logdir)

    def poll_jobs(self) -> None:
        """Report what the jobs did; the loss of the executor is an error, and so the loss of the backend."""
        self._jobs.report()
        self._check_engine()

    @hookimpl
    def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Ask the workers of those jobs that have these tasks."""
        return self._jobs.cancel(tasks)

    @hookimpl
    async def rhapsody_shutdown(self) -> None:
        """End the executor; the guard then ends the workers, which carry its mark."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await self._context.in_thread(self._stop, engine)

    def _stop(self, engine: Any) -> None:
        engine.shutdown()
        engine.provider.cancel(list(engine.provider.resources))
        self._jobs.close()
