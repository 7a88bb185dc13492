"""What it costs to decide which task goes next, on a simulated machine of 64 cores and 8 GPUs."""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from rhapsody.api import Batching, ComputeTask, Resources, TaskState
from rhapsody.plugin import Capacity, Outcome
from rhapsody.scheduling.batching import AdaptiveBatching
from rhapsody.scheduling.instructions import Choose, Deliver, Submit
from rhapsody.scheduling.taskflow import TaskFlow

#: How many of a hundred tasks, the seconds that one takes, and what it asks for.
KINDS: list[tuple[int, float, dict[str, Any]]] = [
    (40, 1.0, {"cores_per_rank": 1}),
    (20, 4.0, {"cores_per_rank": 2}),
    (18, 6.0, {"ranks": 8}),
    (4, 8.0, {"ranks": 16}),
    (2, 10.0, {"ranks": 32}),
    (8, 3.0, {"gpus_per_rank": 0.5}),
    (8, 5.0, {"gpus_per_rank": 1, "cores_per_rank": 2}),
]


def decision_seconds(waiting: int, decisions: int) -> list[float]:
    """Return the processor time of decisions, sorted, while so many tasks wait: the end of one, and what follows."""
    chosen, numbers = random.Random(1), itertools.count()
    flow = TaskFlow("machine", AdaptiveBatching(Batching()), can_cancel=False)
    functions = [_function(number) for number in range(len(KINDS))]
    running: list[tuple[float, int, ComputeTask]] = []

    def carry_out(instructions: Sequence[Any], now: float) -> int:
        made = 0
        for instruction in instructions:
            if isinstance(instruction, Choose):
                answer = flow._batching.rhapsody_batch(instruction.backlog)
                made += 1 + carry_out(flow.chosen(answer, now), now)
            elif isinstance(instruction, Submit):
                for task in instruction.batch.tasks:
                    heapq.heappush(running, (now + task.args[0], next(numbers), task))
                made += carry_out(flow.submitted(), now)
            elif isinstance(instruction, Deliver):
                for task, event in instruction.changes:
                    task.state = event.state if isinstance(event, Outcome) else task.state
        return made

    tasks = []
    for kind in chosen.choices(range(len(KINDS)), [share for share, *_ in KINDS], k=waiting + decisions):
        _, seconds, wanted = KINDS[kind]
        tasks.append(ComputeTask(function=functions[kind], args=(seconds,), resources=Resources(**wanted)))
        tasks[-1].state = TaskState.QUEUED
    carry_out(flow.open(Capacity(64, units=None, cores=64, gpus=8)), 0.0)
    carry_out(flow.accept(tasks), 0.0)
    took: list[float] = []
    while len(took) < decisions:
        now, _, task = heapq.heappop(running)
        outcome = Outcome(task.uid, TaskState.DONE, started_at=now - task.args[0], ended_at=now)
        began = time.thread_time()
        made = carry_out(flow.apply([outcome], now), now)
        if made:
            took.append((time.thread_time() - began) / made)
    return sorted(took)


def row(scale: float) -> tuple[str, str, float | None]:
    """Return a line of the table: a decision at a backlog, against 20 microseconds."""
    waiting = int(100_000 * scale)
    rounds = [statistics.median(decision_seconds(waiting, 2000)) for _ in range(3)]
    text = f"median {min(rounds) * 1e6:.1f} to {max(rounds) * 1e6:.1f} us"
    return f"a decision at a backlog of {waiting:,}, against 20 us", text, statistics.median(rounds) / 20e-6


def _function(number: int) -> Callable[[float], None]:
    source = f"def kind_{number}(seconds): return {number}"
    names: dict[str, Any] = {}
    exec(source, names)  # each kind is a function of its own, by which its length is learned
    made: Callable[[float], None] = names[f"kind_{number}"]
    return made
