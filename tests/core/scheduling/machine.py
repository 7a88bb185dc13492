"""A simulated machine: runs what a `TaskFlow` gives it by a virtual clock, and checks that nothing is overbooked."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from typing import Any

from rhapsody.api import Batching, ComputeTask, Resources, TaskState
from rhapsody.plugin import Capacity, Event, Outcome
from rhapsody.scheduling.batching import AdaptiveBatching
from rhapsody.scheduling.instructions import Choose, Deliver, Submit
from rhapsody.scheduling.taskflow import TaskFlow
from rhapsody.sessions.recorder import apply

from .engine import function

FUNCTIONS = [function(f"f{number}") for number in range(12)]


def job(seconds: float, called: int = 0, **resources: Any) -> ComputeTask:
    """Return a task that takes so many seconds, as far as this machine is concerned."""
    wanted = Resources(**resources) if resources else None
    task = ComputeTask(function=FUNCTIONS[called], args=(seconds,), resources=wanted)
    task.state = TaskState.QUEUED
    return task


def again(like: ComputeTask) -> ComputeTask:
    """Return another task of the same length and resources."""
    task = ComputeTask(function=like.function, args=like.args, resources=like.resources)
    task.state = TaskState.QUEUED
    return task


class Machine:
    """Cores, GPUs and memory; tasks end exactly when they should.

    Attributes:
        now: seconds.
        starts: when each task started, by uid.
        decisions: how often it was decided what goes next.
    """

    def __init__(
        self, cores: int = 64, gpus: int = 8, memory: int | None = None, *, checks: bool = True, **capacity: Any
    ) -> None:
        self.cores, self.gpus, self.memory = cores, gpus, memory
        self.flow = TaskFlow("machine", AdaptiveBatching(Batching()), can_cancel=False)
        self.now = 0.0
        self.starts: dict[str, float] = {}
        self.failed: list[ComputeTask] = []
        self.decisions = 0
        self._checks = checks
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, ComputeTask | None]] = []
        self._running: dict[str, tuple[ComputeTask, tuple[int, ...]]] = {}
        self._arrivals: dict[int, Sequence[ComputeTask]] = {}
        capacity = {"units": None, "cores": cores, "gpus": gpus, "memory": memory, **capacity}
        self._carry_out(self.flow.open(Capacity(cores, **capacity)))

    def submit(self, tasks: Sequence[ComputeTask], at: float = 0.0) -> None:
        """Have tasks come at a time."""
        number = next(self._numbers)
        self._arrivals[number] = tasks
        heapq.heappush(self._events, (at, number, None))

    def run(self) -> float:
        """Run until nothing is left; return when that was."""
        while self._events:
            self.step()
        assert not self._running
        assert not self.flow._backlog.waiting
        return self.now

    def step(self) -> None:
        """Let the next thing happen: tasks come, or one ends."""
        self.now, number, task = heapq.heappop(self._events)
        if task is None:
            self._carry_out(self.flow.accept(self._arrivals.pop(number)))
            return
        del self._running[task.uid]
        began = self.starts[task.uid]
        self.report([Outcome(task.uid, TaskState.DONE, started_at=began, ended_at=self.now)])

    def report(self, events: Sequence[Event]) -> None:
        """Report events of the engine."""
        self._carry_out(self.flow.apply(events, self.now))

    def _carry_out(self, instructions: Sequence[Any]) -> None:
        for instruction in instructions:
            if isinstance(instruction, Choose):
                self.decisions += 1
                answer = self.flow._batching.rhapsody_batch(instruction.backlog)
                self._carry_out(self.flow.chosen(answer, self.now))
            elif isinstance(instruction, Submit):
                self._start(instruction.batch)
                self._carry_out(self.flow.submitted())
            elif isinstance(instruction, Deliver):
                for task, event in instruction.changes:
                    apply(task, event)
                    if task.state is TaskState.FAILED:
                        self.failed.append(task)

    def _start(self, batch: Any) -> None:
        begins = self.now
        for task in batch.tasks:
            self._running[task.uid] = task, batch.gpus.get(task.uid, ())
            self.starts[task.uid] = begins
            begins += task.args[0]
            heapq.heappush(self._events, (begins, next(self._numbers), task))
        if self._checks:
            self._check()

    def _check(self) -> None:
        """Nothing is given to two at once."""
        shares = [0.0] * self.gpus
        cores = memory = 0
        seen: set[int] = set()
        for task, gpus in self._running.values():
            wanted = task.resources or Resources()
            if task.resources is None and task._batch is not None:  # those of one batch run one after the other
                if id(task._batch) in seen:
                    continue
                seen.add(id(task._batch))
            cores += wanted.cores
            memory += wanted.memory or 0
            each = wanted.gpus_per_rank
            assert len(gpus) == wanted.ranks * (int(each) if each >= 1 else bool(each))
            for gpu in gpus:
                shares[gpu] += min(each, 1)
        assert cores <= self.cores
        assert self.memory is None or memory <= self.memory
        assert all(share <= 1 + 1e-6 for share in shares)
