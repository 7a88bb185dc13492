"""A backend on a spool queue: its jobs are executables, and what becomes of them must be asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rhapsody.errors import BackendConfigurationError, UnsupportedError
from rhapsody.plugin import (
    BackendCapabilities,
    BackendContext,
    CancelResult,
    Capacity,
    ComputeTask,
    ExecutionBackend,
    FileJobs,
    TaskBatch,
    hookimpl,
)

QUEUE = Path(__file__).with_name("spool_queue.py")


def end_of(job: Path) -> str | None:
    """Return how a job of the queue ended; None where it has not."""
    end = job.with_suffix(".end")
    return f"job {job.stem} of the queue ended with {end.read_text()}" if end.exists() else None


class SpoolExecutionBackend(ExecutionBackend):
    """Runs batches as jobs of a spool queue.

    Args:
        name: the name under which tasks choose the backend.
        slots: jobs at the same time.
        options: of every backend, such as `batching`.

    Raises:
        BackendConfigurationError: fewer than one slot.
    """

    interface_version = 1
    capabilities = BackendCapabilities(
        cancel_functions=True, cancel_executables=True, batch_executables=True, options={"nice"}
    )

    def __init__(self, name: str = "spool", slots: int = 2, **options: Any) -> None:
        super().__init__(name, **options)
        if slots < 1:
            raise BackendConfigurationError(f"backend {name!r}: slots must be at least 1, not {slots!r}")
        self._slots = slots
        self._queue: subprocess.Popen[bytes] | None = None

    @hookimpl
    def rhapsody_init(self, context: BackendContext) -> None:
        """Start the queue, which the guard ends should this program die, and all its jobs with it."""
        self._jobs = FileJobs(context)
        self._queue = subprocess.Popen(
            [sys.executable, str(QUEUE), str(self._jobs.folder), str(self._slots)],
            stdin=subprocess.DEVNULL,
            env=context.guard.environment(),
            start_new_session=True,
        )
        context.guard.watch(self._queue)
        context.set_capacity(Capacity(slots=self._slots))
        context.poll(0.01, self.poll_queue)

    @hookimpl
    def rhapsody_validate(self, tasks: Sequence[ComputeTask]) -> None:
        """Refuse a niceness that is none."""
        for task in tasks:
            nice = (task.backend_options or {}).get("nice", 0)
            if type(nice) is not int or not 0 <= nice <= 19:
                raise UnsupportedError(
                    f"task {task.uid}: backend {self.name!r} takes a number from 0 to 19 as 'nice', not {nice!r}"
                )

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        """Write a batch as a job into the queue's folder; a task with options is a batch of its own."""
        source, target = self._jobs.write(batch)
        nice = (batch.tasks[0].backend_options or {}).get("nice", 0)
        command = ["nice", "-n", str(nice), sys.executable, "-m", "rhapsody.worker", str(source), str(target)]
        source.with_suffix(".new").write_text("\n".join(command))
        job = source.with_suffix(".new").rename(source.with_suffix(".job"))
        self._jobs.follow(batch, lambda: end_of(job), native_id=job.stem, logs=str(job.with_suffix(".log")))

    def poll_queue(self) -> None:
        """Report what the jobs did; the loss of the queue is an error, and so the loss of the backend."""
        self._jobs.report()
        if self._queue is not None and self._queue.poll() is not None:
            raise RuntimeError(f"the queue has ended with exit code {self._queue.returncode}")

    @hookimpl
    def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Ask the workers of those jobs that have these tasks."""
        return self._jobs.cancel(tasks)

    @hookimpl
    def rhapsody_shutdown(self) -> None:
        """End the queue; the guard then ends the jobs that it leaves, which carry its mark."""
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.kill()
            queue.wait()
            self._jobs.close()
