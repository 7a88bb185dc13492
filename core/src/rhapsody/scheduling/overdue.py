"""Finds the tasks that wait in a batch behind a long one while they could run elsewhere. Pure.

A batch holds tasks that are expected to be short together (`scheduling.batching`). Where one of them turns out long,
those behind it wait for it, whatever else is idle. So the backend is asked to give back what has not begun, by
`rhapsody_withdraw`:

- from a batch that takes more than twice the target of a batch, as soon as a slot is free and the backlog is empty;
- from one that takes ten times the target, also while the backlog keeps all slots busy: what waits in it was submitted
  before what waits in the backlog.

What comes back goes to the front of the backlog, and is grouped anew by what has been learned since.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from rhapsody.scheduling.instructions import HeldBatch

CHECK_EVERY: Final = 0.05  # seconds between two checks, while batches of several tasks are in flight
_LEAST: Final = 0.1  # seconds that any batch may take
_IDLE: Final = 2.0  # times the target, where a slot is free
_BUSY: Final = 10.0  # times the target, where none is


class SharedBatches:
    """The batches of several tasks that the engine holds."""

    def __init__(self) -> None:
        self._batches: dict[HeldBatch, float] = {}  # and since when each takes what it takes, oldest first

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._batches)

    def add(self, batch: HeldBatch) -> None:
        """The engine gets a batch."""
        if len(batch.tasks) > 1:
            self._batches[batch] = batch.submitted_at

    def discard(self, batch: HeldBatch) -> None:
        """A batch has ended."""
        self._batches.pop(batch, None)

    def clear(self) -> None:
        """The engine is gone."""
        self._batches.clear()

    def overdue(self, now: float, target: float, started: Collection[str], *, is_idle: bool) -> list[HeldBatch]:
        """Return the batches that have begun and take too long; they are not named again for as long.

        Args:
            now: seconds, of the clock by which batches were submitted.
            target: seconds that a batch is meant to take.
            started: uids of tasks whose start was reported.
            is_idle: whether a slot is free, and no task waits for it.
        """
        patience = max(_LEAST, target * (_IDLE if is_idle else _BUSY))
        found: list[HeldBatch] = []
        for batch, since in self._batches.items():
            if now - since < patience or batch.left < 2:
                continue
            # One that has not begun is left to the engine, which may still move it as a whole.
            if batch.left < len(batch.tasks) or any(task.uid in started for task in batch.tasks):
                self._batches[batch] = now
                batch.spare = True  # what it takes says nothing of what the engine charges for a batch
                found.append(batch)
        return found
