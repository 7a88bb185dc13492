"""Reads the frames of a batch while they are written, and judges what is left of it when its worker is lost."""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path

from rhapsody.errors import ProtocolError
from rhapsody.model.outcome import CancelResult, Outcome, Started
from rhapsody.model.task import ComputeTask
from rhapsody.protocol.batch import TaskBatch
from rhapsody.protocol.frames import STARTED, frames
from rhapsody.protocol.outcomes import outcome_of
from rhapsody.seam.channel import Event
from rhapsody.seam.loss import settle_lost
from rhapsody.worker.files import CANCEL
from rhapsody.worker.progress import whole_frames


class BatchReader:
    """Reads what a worker writes of one batch, as far as it is written.

    Args:
        batch: as it was submitted, and encoded.
        starts: whether the worker writes a frame when a task begins, as `python -m rhapsody.worker` and `run_file` do.
            Otherwise the first task without a frame counts as one that may have begun.
        ran_on: recorded as the place of the tasks, where the frames have none.
        native_id: recorded in each task: what the engine calls the job.
        logs: recorded in each task: where the engine's log of the job is.

    Attributes:
        consumed: bytes read so far, all of whole frames; what follows them is to be given to `feed`.
        ended: uids of the tasks whose outcome was read.
        running: uid of the task that began last and has not ended; None where there is none, or starts are not written.
    """

    def __init__(
        self,
        batch: TaskBatch,
        *,
        starts: bool = True,
        ran_on: str | None = None,
        native_id: str | None = None,
        logs: str | None = None,
    ) -> None:
        self.batch = batch
        self.consumed = 0
        self.ended: set[str] = set()
        self.running: str | None = None
        self._starts = starts
        self._job = (ran_on, native_id, logs)
        self._canceled: set[str] = set()

    def read(self, path: str | Path) -> list[Event]:
        """Return what a file of frames holds beyond what was read before; nothing where it is not there yet."""
        try:
            with Path(path).open("rb") as file:
                file.seek(self.consumed)
                return self.feed(file.read())
        except FileNotFoundError:
            return []

    def feed(self, data: bytes) -> list[Event]:
        """Return the events of the whole frames at the start of `data`, which follows what is consumed."""
        count = whole_frames(data)
        self.consumed += count
        ran_on, native_id, logs = self._job
        events: list[Event] = []
        try:
            for frame in frames(data[:count]):
                if frame[1] == STARTED:
                    self.running = frame[0]
                    events.append(Started(frame[0], frame[3], frame[5] or ran_on, native_id, logs))
                else:
                    events.append(self._ended(outcome_of(frame, ran_on)))
        except ProtocolError:  # of another version, so that it cannot be said whose frame it is
            events += [
                self._ended(outcome) for outcome in self.batch.decode(data[:count]) if outcome.uid not in self.ended
            ]
        return events

    def _ended(self, outcome: Outcome) -> Outcome:
        self.ended.add(outcome.uid)
        if outcome.uid == self.running:
            self.running = None
        _, outcome.native_id, outcome.logs = self._job
        return outcome

    @property
    def is_complete(self) -> bool:
        """Whether each task of the batch has ended."""
        return all(task.uid in self.ended for task in self.batch.shipped)

    def cancel(self, path: str | Path, tasks: Iterable[ComputeTask]) -> dict[str, CancelResult]:
        """Ask the worker of `run_file` to stop tasks, and return what `rhapsody_cancel` answers of those in this batch.

        The worker ends where a running function is among them: report `lost` then. Whether a task was faster than its
        cancel is decided by what is read next, and core's answer to the user by that.

        Args:
            path: the file of frames, which the worker was given.
            tasks: what `rhapsody_cancel` was given; those of other batches, and those that have ended, are passed over.
        """
        own = {task.uid for task in self.batch.shipped} - self.ended
        asked = [task.uid for task in tasks if task.uid in own]
        if asked:
            self._canceled.update(asked)
            with Path(f"{path}{CANCEL}").open("a") as file:
                file.write("".join(f"{uid}\n" for uid in asked))
        running, waiting = CancelResult.STOPPED, CancelResult.NEVER_STARTED
        return {uid: running if uid == self.running else waiting for uid in asked}

    def lost(self, why: str, canceled: Container[str] | None = None) -> list[Event]:
        """Return the events that end what is left of the batch, now that its worker is gone; see `settle_lost`.

        Read what it had written first.

        Args:
            why: how the worker ended, for the message of the error: it follows "task UID: ".
            canceled: uids of the tasks that were asked to stop. None: those that `cancel` was given.
        """
        if canceled is None:
            canceled = self._canceled
        left = [task.uid for task in self.batch.shipped if task.uid not in self.ended]
        begun = {self.running} if self._starts else set(left[:1])
        events = settle_lost(self.batch, self.ended, begun - {None}, canceled, why=why)  # type: ignore[arg-type]  # no None
        for event in events:
            if isinstance(event, Outcome):
                _, event.native_id, event.logs = self._job
        self.ended.update(left)
        return events
