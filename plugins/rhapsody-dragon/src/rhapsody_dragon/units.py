"""What the user's side of the worker group knows: units, the places where they are, and what workers have noted."""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from rhapsody.plugin import ComputeTask, Started, TaskBatch

from .far import PROGRESS


class Unit:
    """A batch in the hands of one worker."""

    def __init__(self, batch: TaskBatch) -> None:
        self.batch = batch
        self.left: dict[str, ComputeTask] = {task.uid: task for task in batch.shipped}
        self.dropped: set[str] = set()
        self.told: ComputeTask | None = None  # the last task whose start was reported
        self._next = 0

    def running(self) -> ComputeTask | None:
        """The task that runs, or will run first."""
        tasks = self.batch.shipped  # a dict that loses its first entries is slow to begin, so this keeps its place
        while self._next < len(tasks):
            if tasks[self._next].uid in self.left:
                return tasks[self._next]
            self._next += 1
        return None

    def begun(self, count: int | None) -> set[str]:
        """The tasks that may have begun; `count` is how many the worker has noted, None if it keeps no notes.

        What was left out is not in the count, and by then no longer in `left`.
        """
        running = self.running()
        begun = set() if running is None else {running.uid}
        if count is not None:
            sent = [task.uid for task in self.batch.shipped if task.uid not in self.dropped]
            begun = set(sent[:count])
        return begun


class Place:
    """One worker, and whoever follows it when it dies."""

    def __init__(self, number: int, policy: Any) -> None:
        self.number = number
        self.policy = policy
        self.inbox: Any = None
        self.control: Any = None
        self.process: Any = None
        self.ready = False
        self.pid = self.parent = 0  # known once it is ready
        self.started_at = 0.0
        self.failures = 0
        self.units: dict[int, Unit] = {}

    @property
    def is_busy(self) -> bool:
        """Whether its worker is up and has something to do, so that it does not read its inbox."""
        return self.ready and bool(self.units)

    def next_started(self) -> Sequence[Started]:
        """What the worker has gone on to, once; it does so by itself, so it is known without being told."""
        for unit in self.units.values():
            task = unit.running()
            if task is None or task is unit.told:
                break
            unit.told = task
            return (Started(task.uid, time.time()),)
        return ()


class Progress:
    """This side of the file in which workers of this node note what they have done; it has no name to be left over."""

    def __init__(self, count: int, shared: bool) -> None:
        self.path: str | None = None
        if shared:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open for the life of the group
            self._file.truncate(count * PROGRESS.size)
            self._map = mmap.mmap(self._file.fileno(), 0)
            self.path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"

    def take(self, place: int) -> tuple[int, int] | None:
        """Return the unit of a dead worker and how many of its tasks have begun, and clear it for the next worker."""
        if self.path is None:
            return None
        unit, begun = PROGRESS.unpack_from(self._map, place * PROGRESS.size)
        PROGRESS.pack_into(self._map, place * PROGRESS.size, 0, 0)
        return unit, begun

    def close(self) -> None:
        """Let the file go."""
        if self.path is not None:
            self._map.close()
            self._file.close()
