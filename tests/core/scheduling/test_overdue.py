"""What waits behind a long task is asked back, on a simulated engine: no clock, no I/O."""

from __future__ import annotations

import heapq
import itertools
from typing import Any

import pytest
from rhapsody.api import Batching, ComputeTask, TaskState
from rhapsody.plugin import Capacity, Outcome, Returned, Started
from rhapsody.scheduling.batching import AdaptiveBatching
from rhapsody.scheduling.instructions import Choose, Submit
from rhapsody.scheduling.overdue import CHECK_EVERY
from rhapsody.scheduling.taskflow import TaskFlow

from .engine import task

SLOTS = 8
SHORT, LONG = 0.001, 3.0  # seconds


class Workers:
    """Workers that run one batch each, give back what has not begun, and charge `cost` seconds for a batch."""

    def __init__(self, cost: float) -> None:
        self.policy = AdaptiveBatching(Batching())
        self.flow = TaskFlow("simulated", self.policy, can_cancel=False)
        self.cost = cost
        self.now = 0.0
        self.asked = 0  # tasks that were asked back
        self.batches: dict[int, list[ComputeTask]] = {}  # what is left of each, the first running
        self.queue: list[Any] = []
        self.counter = itertools.count()
        self.carry_out(self.flow.open(Capacity(SLOTS, units=SLOTS)))

    def carry_out(self, instructions: list[Any]) -> None:
        left = list(instructions)
        while left:
            instruction = left.pop(0)
            if isinstance(instruction, Choose):
                left += self.flow.chosen(self.policy.rhapsody_batch(instruction.backlog), self.now)
            elif isinstance(instruction, Submit):
                batch = instruction.batch
                self.batches[batch.uid] = list(batch.tasks)
                self.begin(batch.uid, self.cost)
                left += self.flow.submitted()

    def begin(self, uid: int, delay: float = 0.0) -> None:
        if self.batches[uid]:
            first = self.batches[uid][0]
            heapq.heappush(self.queue, (self.now + delay, next(self.counter), uid, first, False))
            heapq.heappush(self.queue, (self.now + delay + first.args[0], next(self.counter), uid, first, True))

    def run(self, tasks: list[ComputeTask]) -> float:
        """Run tasks; return the makespan."""
        start, check = self.now, self.now + CHECK_EVERY
        self.carry_out(self.flow.accept(tasks))
        while self.queue:
            if self.queue[0][0] > check:
                self.now, check = check, check + CHECK_EVERY
                self.give_back(self.flow.overdue(self.now))
                continue
            self.now, _, uid, one, ended = heapq.heappop(self.queue)
            if not ended:
                self.carry_out(self.flow.apply([Started(one.uid, self.now)], self.now))
                continue
            self.batches[uid].pop(0)
            self.begin(uid)
            outcome = Outcome(one.uid, TaskState.DONE, started_at=self.now - one.args[0], ended_at=self.now)
            self.carry_out(self.flow.apply([outcome], self.now))
        return self.now - start

    def give_back(self, tasks: list[ComputeTask]) -> None:
        self.asked += len(tasks)
        for left in list(self.batches.values()):
            back = [one for one in left[1:] if one in tasks]
            left[:] = [one for one in left if one not in back]
            self.carry_out(self.flow.apply([Returned([one.uid for one in back])], self.now))


@pytest.mark.parametrize("cost", [0.0001, 0.002])
@pytest.mark.parametrize("at", [0, 2000, 3992])
def test_long_tasks_keep_no_slot_idle(at: int, cost: float) -> None:
    """Eight tasks of 3 s in a row among 4,000 of 1 ms take at most 1.3 of the best makespan."""
    workers = Workers(cost)
    workers.run([task(SHORT) for _ in range(400)])
    lengths = [SHORT] * 4000
    lengths[at : at + 8] = [LONG] * 8
    assert workers.run([task(seconds) for seconds in lengths]) <= 1.3 * (sum(lengths) / SLOTS)


@pytest.mark.parametrize("cost", [0.0001, 0.002, 0.25])
def test_equal_tasks_are_not_asked_back(cost: float) -> None:
    """Batches that take what was expected are left alone."""
    workers = Workers(cost)
    workers.run([task(SHORT) for _ in range(4000)])
    assert workers.asked == 0


def test_a_long_backlog_does_not_hide_long_tasks() -> None:
    """Tasks behind a long one go elsewhere while the backlog still keeps every slot busy."""
    workers = Workers(0.0001)
    workers.run([task(SHORT) for _ in range(400)])
    tasks = [task(SHORT) for _ in range(40_000)]
    tasks[10].args = (LONG,)
    finals: list[str] = []
    behind = tasks[11].uid
    apply = workers.flow.apply

    def noting(events: Any, now: float) -> Any:
        finals.extend(event.uid for event in events if isinstance(event, Outcome))
        return apply(events, now)

    workers.flow.apply = noting  # type: ignore[method-assign]
    workers.run(tasks)
    assert finals.index(behind) < 10_000
