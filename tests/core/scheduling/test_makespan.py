"""What the batching policy costs, on a simulated engine: no clock, no I/O."""

import random

import pytest

from .engine import A, B, C, D, Engine, task

SLOTS = (2, 4, 16, 64)


COSTS = (0.0001, 0.25)


def with_long_ones(count, short, times, chance=0.01, seed=7):
    chosen = random.Random(seed)
    return [task(short * (times if chosen.random() < chance else 1)) for _ in range(count)]


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("streams", [True, False])
def test_equal_tasks_near_optimum(slots, cost, streams):
    """Equal tasks take at most 15% more than the best possible makespan."""
    tasks = [task(cost / 2) for _ in range(200 * slots)]
    engine = Engine(slots, cost, streams=streams)
    assert engine.run(tasks) <= 1.15 * engine.best(tasks)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("times", [20, 100])
def test_rare_long_tasks_near_optimum(slots, cost, times):
    """One percent of long tasks among short ones cost at most 15%."""
    tasks = with_long_ones(600 * slots, cost / 2, times)
    engine = Engine(slots, cost)
    assert engine.run(tasks) <= 1.15 * engine.best(tasks)


@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("cost", COSTS)
def test_mixed_functions_near_optimum(slots, cost):
    """Interleaved functions of different lengths cost at most 15%."""
    lengths = ((A, 0.01), (B, 0.1), (C, 1.0), (D, 4.0))
    tasks = [task(cost * length, called) for _ in range(50 * slots) for called, length in lengths]
    engine = Engine(slots, cost)
    assert engine.run(tasks) <= 1.15 * engine.best(tasks)


@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("law", ["shrinking", "growing", "exponential"])
def test_varying_lengths_near_optimum(slots, law):
    """Functions whose length changes or scatters cost at most 15%."""
    count, cost, chosen = 200 * slots, 0.05, random.Random(3)
    laws = {
        "shrinking": lambda i: 10 * cost * (1 - i / count) ** 3,
        "growing": lambda i: 10 * cost * (i / count) ** 3,
        "exponential": lambda i: chosen.expovariate(1 / cost),
    }
    tasks = [task(laws[law](i)) for i in range(count)]
    engine = Engine(slots, cost)
    assert engine.run(tasks) <= 1.15 * engine.best(tasks)


@pytest.mark.parametrize("slots", SLOTS)
def test_sudden_slowness_is_bounded(slots):
    """A function that becomes a hundred times slower costs no more than what was in flight."""
    cost = 0.05
    tasks = [task(cost / 10 * (1 if i < 70 * slots else 100)) for i in range(100 * slots)]
    engine = Engine(slots, cost)
    assert engine.run(tasks) <= 2 * engine.best(tasks)


@pytest.mark.parametrize("slots", SLOTS)
def test_tiny_backlog_takes_few_rounds(slots):
    """A short backlog of tiny tasks takes few rounds of an expensive engine."""
    engine = Engine(slots, cost=0.25)
    tasks = [task(0.0001) for _ in range(200 * slots)]
    assert (engine.run(tasks) - engine.best(tasks)) / engine.cost <= 6 + 0.8 * slots**0.5


@pytest.mark.parametrize("spare", [0, 2])
def test_learning_carries_over(spare):
    """What one workload taught is used by the next."""
    engine = Engine(2, 0.05, spare=spare)
    engine.run([task(0.001) for _ in range(2000)])
    before, again = len(engine.batches), [task(0.001) for _ in range(2000)]
    assert engine.run(again) <= 1.25 * engine.best(again)
    assert len(engine.batches) - before <= 12
