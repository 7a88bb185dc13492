"""Follows the batches that an engine runs from one file into another."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import attrs

from rhapsody.errors import BackendError, InvalidBackendError, describe
from rhapsody.model.outcome import CancelResult, Returned
from rhapsody.model.task import ComputeTask
from rhapsody.protocol.batch import TaskBatch
from rhapsody.seam.context import BackendContext
from rhapsody.seam.reader import BatchReader
from rhapsody.worker.files import CANCEL

_FRUITLESS: Final = 10  # jobs in a row that ended before a task began: such would come without end
Ended = Callable[[], str | None]


@attrs.frozen(eq=False)
class _Job:
    target: Path
    reader: BatchReader
    ended: Ended
    logs: str | None


class FileJobs:
    """The batches of an engine whose jobs are `python -m rhapsody.worker IN OUT`, or its calls `run_file(IN, OUT)`.

    For each batch: `write` it, have the engine run it, and `follow` it. Call `report` by `context.poll`.

    Args:
        context: of the backend; the files are in its sandbox.

    Attributes:
        folder: where the files are; also for files of the engine's own, such as logs, which stay.
    """

    def __init__(self, context: BackendContext) -> None:
        self.folder = context.sandbox / context.backend
        self.folder.mkdir(exist_ok=True)
        self._context = context
        self._jobs: list[_Job] = []
        self._fruitless = 0

    def write(self, batch: TaskBatch) -> tuple[Path, Path]:
        """Write a batch into a file, and return the paths IN and OUT."""
        source, target = self._files(batch)
        source.write_bytes(batch.encode())
        return source, target

    def follow(
        self,
        batch: TaskBatch,
        ended: Ended,
        *,
        ran_on: str | None = None,
        native_id: str | None = None,
        logs: str | None = None,
    ) -> None:
        """Follow a batch that the engine has taken, until each of its tasks has ended.

        Args:
            batch: which was written.
            ended: returns None as long as the job waits or runs, and how it ended after that: a sentence that follows
                "task UID: ". What it raises is raised by `report`.
            ran_on: recorded as the place of the tasks, where the frames have none.
            native_id: recorded in each task: what the engine calls the job.
            logs: recorded in each task: where the engine's log of the job is.

        Raises:
            InvalidBackendError: `ended` is no function.
        """
        if not callable(ended):
            raise InvalidBackendError(
                f"follow takes a function that says how the job ended, and None as long as it has not, not "
                f"{describe(ended)}"
            )
        reader = BatchReader(batch, ran_on=ran_on, native_id=native_id, logs=logs)
        self._jobs.append(_Job(self._files(batch)[1], reader, ended, logs))

    def report(self) -> None:
        """Report what the jobs have done since the last call; remove the files of those that have ended.

        Raises:
            BackendError: ten jobs in a row ended before they began a task, so that none will.
        """
        for job in list(self._jobs):
            how = job.ended()  # before the frames are read: none follow its end
            events = job.reader.read(job.target)
            if events:
                self._fruitless = 0
            if how is not None:
                events += job.reader.lost(how)
            self._context.events.put(events)
            if job.reader.is_complete:
                self._forget(job)
            if any(isinstance(event, Returned) for event in events) and not job.reader.consumed:
                self._fruitless += 1
                if self._fruitless == _FRUITLESS:
                    raise BackendError(
                        f"{_FRUITLESS} jobs in a row ended before they began a task: {how} (log: {job.logs}). Does "
                        f"their command run on the engine's nodes, with rhapsody-core, and do these see {self.folder}?"
                    )

    def cancel(self, tasks: Iterable[ComputeTask]) -> dict[str, CancelResult]:
        """Ask the workers to stop tasks, and return what `rhapsody_cancel` answers; see `BatchReader.cancel`."""
        tasks = list(tasks)
        return {uid: answer for job in self._jobs for uid, answer in job.reader.cancel(job.target, tasks).items()}

    def close(self) -> None:
        """Remove the files of the jobs that are left; call it in `rhapsody_shutdown`, when the engine has ended."""
        for job in list(self._jobs):
            self._forget(job)
        with contextlib.suppress(OSError):  # the engine's own files stay
            self.folder.rmdir()

    def _forget(self, job: _Job) -> None:
        self._jobs.remove(job)
        for path in (*self._files(job.reader.batch), Path(f"{job.target}{CANCEL}")):
            path.unlink(missing_ok=True)

    def _files(self, batch: TaskBatch) -> tuple[Path, Path]:
        path = self.folder / f"{batch.uid:08d}"
        return path.with_suffix(".in"), path.with_suffix(".out")
