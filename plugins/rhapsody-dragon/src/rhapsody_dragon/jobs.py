"""What V1 knows of a task, and how its tasks share the slots."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from rhapsody.plugin import ComputeTask, TaskBatch


class Job:
    """A task and what runs it."""

    def __init__(self, batch: TaskBatch, task: ComputeTask) -> None:
        self.batch = batch
        self.task = task
        self.process: Any = None
        self.group: Any = None
        self.started_at: float | None = None
        self.begun = False
        self.canceled = False
        self.timed_out = False
        self.reported = False
        self.over = threading.Event()

    def joined(self, seconds: float) -> bool:
        """Wait for the end of the processes, in the thread that would otherwise wait for them."""
        try:
            if self.process is not None:
                return self.process.join(timeout=seconds) is not None
            self.group.join(timeout=seconds)
        except TimeoutError:
            return False
        return True


class Slots:
    """Counts what is free; whoever needs several waits its turn, so that it is not overtaken for ever."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    def acquire(self, count: int, job: Job, is_over: Callable[[], bool], *, wait: bool = True) -> bool:
        """Block until `count` slots are free and everybody who came before has theirs, and begin the job.

        Returns False, without any slots, as soon as the job is canceled or all `is_over`; with `wait=False` also where
        it would block.
        """
        me = object()
        with self._changed:
            if not wait and (self._queue or self._free < count):
                return False
            self._queue.append(me)
            self._changed.wait_for(lambda: job.canceled or is_over() or (self._queue[0] is me and self._free >= count))
            self._queue.remove(me)
            job.begun = not job.canceled and not is_over()
            if job.begun:
                self._free -= count
            self._changed.notify_all()
            return job.begun

    def release(self, count: int) -> None:
        """Give slots back."""
        with self._changed:
            self._free += count
            self._changed.notify_all()

    def cancel(self, jobs: Iterable[Job]) -> None:
        """Keep from beginning what has not begun."""
        with self._changed:
            for job in jobs:
                job.canceled = True
            self._changed.notify_all()
