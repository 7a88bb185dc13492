"""Which task goes next where tasks share cores, GPUs and memory: on a simulated machine, by a virtual clock."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
from rhapsody.api import ComputeTask, Resources, TaskState, UnsupportedError
from rhapsody.plugin import Capacity, CapacityChanged

from .machine import Machine, again, job

#: How many of a hundred tasks, the seconds that one takes, and what it asks for.
KINDS: list[tuple[int, float, dict[str, float]]] = [
    (40, 1.0, {"cores_per_rank": 1}),
    (20, 4.0, {"cores_per_rank": 2}),
    (10, 6.0, {"cores_per_rank": 4}),
    (8, 5.0, {"ranks": 8}),
    (4, 8.0, {"ranks": 16}),
    (1, 10.0, {"ranks": 32}),
    (6, 3.0, {"gpus_per_rank": 0.5}),
    (6, 3.0, {"gpus_per_rank": 1, "cores_per_rank": 2}),
    (2, 5.0, {"ranks": 2, "gpus_per_rank": 1, "cores_per_rank": 4}),
    (1, 6.0, {"ranks": 4, "gpus_per_rank": 1}),
    (2, 2.0, {}),
]


def mixed(count: int, *, varies: float = 0.0) -> list[ComputeTask]:
    """Return tasks of all kinds, whose lengths differ from their kind's by up to a share of it."""
    chosen = random.Random(1)
    kinds = chosen.choices(range(len(KINDS)), [kind[0] for kind in KINDS], k=count)
    lengths = [KINDS[kind][1] * chosen.uniform(1 - varies, 1 + varies) for kind in kinds]
    return [job(seconds, kind, **KINDS[kind][2]) for kind, seconds in zip(kinds, lengths, strict=True)]


def best(tasks: Sequence[ComputeTask], cores: int = 64, gpus: int = 8) -> float:
    """Return what no packing can beat: the seconds of work for each core, or for each GPU."""
    wanted: list[tuple[float, Resources]] = [(task.args[0], task.resources or Resources()) for task in tasks]
    return max(
        sum(seconds * one.cores for seconds, one in wanted) / cores,
        sum(seconds * one.gpus for seconds, one in wanted) / gpus,
    )


@pytest.mark.parametrize("varies", [0.0, 0.3])
def test_mixed_tasks_near_best_packing(varies: float) -> None:
    """10,000 tasks of mixed sizes on 64 cores and 8 GPUs take at most 1/0.95 of the best possible time."""
    machine, tasks = Machine(), mixed(10_000, varies=varies)
    machine.submit(tasks)
    assert best(tasks) / machine.run() >= 0.95
    assert len(machine.starts) == len(tasks)


@pytest.mark.parametrize("known", [True, False])
def test_small_tasks_do_not_starve_a_large(known: bool) -> None:
    """A task of all cores starts at most one task's length after it would if nothing went before it."""
    machine = Machine()
    if known:
        machine.submit([job(5.0, cores_per_rank=1) for _ in range(64)])
    small = [job(5.0, cores_per_rank=1) for _ in range(64)]
    large = job(1.0, 1, cores_per_rank=64)
    machine.submit(small, at=10.0)
    machine.submit([large], at=11.0)
    for number in range(400):  # a new one whenever the first of them could
        machine.submit([job(random.Random(number).uniform(1, 5), cores_per_rank=1)], at=11.0 + number / 10)
    machine.run()
    assert machine.starts[large.uid] <= 15.0 + 5.0


def test_holes_are_filled_meanwhile() -> None:
    """While a large task waits for a long one, short tasks run in the hole, and do not delay it."""
    machine = Machine(cores=4, gpus=0)
    machine.submit([job(10.0, 0, cores_per_rank=2), job(1.0, 1, cores_per_rank=1)])  # their lengths are learned
    machine.submit([job(10.0, 0, cores_per_rank=2)], at=20.0)
    large, short = job(1.0, 2, cores_per_rank=4), [job(1.0, 1, cores_per_rank=1) for _ in range(30)]
    machine.submit([large, *short], at=20.5)
    machine.run()
    assert machine.starts[large.uid] == 30.0
    assert sum(machine.starts[task.uid] < 30.0 for task in short) >= 16


def test_unknown_lengths_take_what_is_spare() -> None:
    """A task of unknown length goes before a large one only where it cannot delay it."""
    machine = Machine(cores=8, gpus=0)
    machine.submit([job(10.0, 0, cores_per_rank=6)])
    large, *unknown = job(1.0, 1, cores_per_rank=6), *(job(20.0, 2, cores_per_rank=1) for _ in range(5))
    machine.submit([large, *unknown], at=1.0)
    machine.run()
    assert machine.starts[large.uid] == 10.0
    assert sorted(machine.starts[task.uid] for task in unknown) == [1.0, 1.0, 11.0, 11.0, 11.0]


def test_oldest_goes_first() -> None:
    """Tasks that have room start in the order in which they came, whatever they ask for."""
    machine = Machine(cores=1, gpus=1)
    wanted: list[dict[str, Any]] = [
        {},
        {"memory": "1 MiB"},
        {"gpus_per_rank": 0.5},
        {},
        {"cores_per_rank": 1},
        {"memory": "1 MiB"},
    ]
    tasks = [job(1.0, number, **fields) for number, fields in enumerate(wanted)]
    machine.submit(tasks)
    machine.run()
    assert [machine.starts[task.uid] for task in tasks] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_memory_is_shared_out() -> None:
    """Tasks never hold more memory than there is, and fill it."""
    machine = Machine(cores=8, memory=2**30)
    tasks = [job(1.0, memory="300 MiB") for _ in range(9)]
    machine.submit(tasks)
    assert machine.run() == 3.0


def test_shares_leave_whole_gpus_whole() -> None:
    """Shares are packed into few GPUs, so that a whole one is left for who wants it."""
    machine = Machine(cores=16, gpus=2)
    whole = job(1.0, 1, gpus_per_rank=1)
    machine.submit([job(9.0, gpus_per_rank=0.25) for _ in range(4)])
    machine.submit([whole], at=1.0)
    machine.run()
    assert machine.starts[whole.uid] == 1.0


def test_exclusive_task_runs_alone() -> None:
    """A task that asks for the machine waits until nothing runs, and nothing runs beside it."""
    machine = Machine(cores=4, gpus=0)
    before, alone, after = job(2.0), job(3.0, 1, exclusive=True), job(1.0, 2)
    machine.submit([before, alone, after])
    machine.run()
    assert [machine.starts[task.uid] for task in (before, alone, after)] == [0.0, 2.0, 5.0]


def test_too_large_task_fails_once_size_is_known() -> None:
    """A task that the engine could never run fails, says the largest that could, and holds nobody up."""
    machine = Machine(cores=4, gpus=1)
    large, small = job(1.0, cores_per_rank=5, gpus_per_rank=2), job(1.0)
    machine.submit([large, small])
    machine.run()
    assert machine.failed == [large]
    assert isinstance(large.exception, UnsupportedError)
    for words in (large.uid, "5 cores and 2 GPUs", "the largest task that could ever run has 4 cores and 1 GPU"):
        assert words in str(large.exception)
    assert machine.starts[small.uid] == 0.0


def test_growing_engine_is_waited_for() -> None:
    """A task that is too large for an engine that may grow waits until it has, and the others go on."""
    machine = Machine(cores=4, gpus=0, may_grow=True)
    large, small = job(1.0, cores_per_rank=8), job(1.0)
    machine.submit([large, small])
    while small.state is not TaskState.DONE:
        assert large.uid not in machine.starts
        machine.step()
    said = machine.flow.explain(large)
    assert said == (
        f"task {large.uid} waits for backend 'machine' to grow: it needs 8 cores, and the largest task that could run "
        f"now has 4 cores"
    )
    machine.cores = 8
    machine.report([CapacityChanged(Capacity(8, cores=8, may_grow=True))])
    machine.run()
    assert machine.starts[large.uid] == 1.0


def test_more_shapes_than_are_looked_at() -> None:
    """Where each task asks for something else, none starves and none is lost."""
    machine = Machine(cores=64)
    tasks = [job(1.0, memory=2**20 + number) for number in range(500)] + [job(1.0, cores_per_rank=64)]
    machine.submit(tasks)
    assert machine.run() <= 500 / 64 + 2
    assert len(machine.starts) == 501


def _cost_of_decisions(count: int) -> float:
    """Return the seconds of processor for 300 ends of tasks, with what starts after each, while so many tasks wait."""
    machine, like = Machine(checks=False), mixed(1000)
    machine.submit([again(like[number % 1000]) for number in range(count)])
    for _ in range(100):
        machine.step()
    began, decided = time.process_time(), machine.decisions
    for _ in range(300):
        machine.step()
    return (time.process_time() - began) / (machine.decisions - decided)


def test_decision_costs_the_same_whatever_waits() -> None:
    """What it costs to decide what goes next does not grow with the number of waiting tasks."""
    few = min(_cost_of_decisions(2_000) for _ in range(3))
    assert _cost_of_decisions(100_000) < 3 * few or _cost_of_decisions(100_000) < 3 * few
