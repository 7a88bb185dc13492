"""Which tasks the batching policy puts into one batch."""

import types

import pytest
from rhapsody.api import Batching, ComputeTask, Resources
from rhapsody.scheduling.backlog import Backlog
from rhapsody.scheduling.batching import AdaptiveBatching

from .engine import A, B, Engine, task


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 17])
def test_no_task_waits_beside_free_slot(count):
    """No task waits behind another while a slot is free."""
    engine = Engine(8, 0.01)
    engine.run([task(0.0001) for _ in range(500)])
    known = engine.queued_behind
    engine.run([task(0.0001) for _ in range(count)])
    assert engine.queued_behind == known == 0


def test_batch_size_grows_and_shrinks():
    """A batch starts at one, grows while tasks prove short, and shrinks at the end."""
    engine = Engine(2, 0.002)
    engine.run([task(0.0001) for _ in range(20_000)])
    sizes = [len(batch) for batch in engine.batches]
    assert sizes[:2] == [1, 1]
    assert max(sizes) * 0.0001 >= 10 * engine.cost
    assert sizes[-1] * 0.0001 <= 2.5 * engine.cost
    assert len(sizes) < 120


def test_unknown_length_goes_alone():
    """A task of unknown length goes alone, and ends the batch before it."""
    engine = Engine(2, 0.002)
    engine.run([task(0.0001) for _ in range(100)])
    known = len(engine.batches)
    engine.run([*(task(0.0001) for _ in range(50)), task(3.0, B), *(task(0.0001) for _ in range(50))])
    (alone,) = [batch for batch in engine.batches[known:] if any(each.function is B for each in batch)]
    assert len(alone) == 1


def test_long_tasks_are_never_batched():
    """Long tasks never share a batch."""
    engine = Engine(4, 0.0001)
    engine.run([task(1.0) for _ in range(40)])
    assert {len(batch) for batch in engine.batches} == {1}


def test_costs_per_task_and_per_batch():
    """The engine's cost of each task is separated from its cost of each batch."""
    engine = Engine(2, cost=0.02, task_cost=0.0005)
    engine.run([task(0.0001) for _ in range(20_000)])
    assert engine.policy.batch_cost == pytest.approx(0.02, rel=0.1)
    assert engine.policy.task_cost == pytest.approx(0.0005, rel=0.2)


def test_slow_moments_keep_the_batch_cost():
    """Batches that were slow for a while leave the least charge of a batch as it is."""
    policy = AdaptiveBatching(Batching())
    policy.observe_batch(1, 0.4)
    for charged in (3.2, 3.2, 1.6, 0.4, 0.8, 0.4):
        policy.observe_batch(100, charged)
    assert policy.batch_cost == pytest.approx(0.4, rel=0.3)


def test_one_slow_moment_is_forgotten():
    """One slow moment does not make every later batch small."""
    policy = AdaptiveBatching(Batching())
    for _ in range(4):
        policy.observe(task(0.0001), 0.0001)
    policy.observe_batch(1, 0.25)
    policy.observe_batch(4, 2.5)  # the machine was busy: the engine charges 0.25 s for a batch, and nothing for a task
    backlog = Backlog()
    backlog.slots, backlog.free = 2, 0
    backlog.add([task(0.0001) for _ in range(2000)])
    batches = 0
    while len(backlog):
        batch = policy.rhapsody_batch(backlog)
        backlog.taken()
        for each in batch:
            policy.observe(each, 0.0001)
        policy.observe_batch(len(batch), 0.25)
        batches += 1
    assert batches < 50


def test_machine_delay_is_no_batch_cost():
    """A delay of the machine is not mistaken for the cost of a batch."""
    policy = AdaptiveBatching(Batching())
    for charged in (0.9, 0.002, 0.5, 0.0021, 0.4):
        policy.observe_batch(1, charged)
    assert policy.batch_cost is not None
    assert policy.batch_cost < 0.03


@pytest.mark.parametrize(
    "special",
    [
        {"executable": "true"},
        {"function": A, "resources": Resources(ranks=2)},
        {"function": A, "backend_options": {"key": 1}},
    ],
)
def test_special_tasks_travel_alone(special):
    """Executables and tasks with resources or options travel alone."""
    policy, backlog = AdaptiveBatching(Batching()), Backlog()
    policy.observe(task(0.0), 0.000001)
    for _ in range(100):
        policy.observe(task(0.0), 0.000001)
    alone = ComputeTask(**special)
    backlog.add([*(task(0.0) for _ in range(5)), alone, *(task(0.0) for _ in range(50))])
    backlog.free = 0
    batches = []
    while len(backlog):
        batches.append(list(policy.rhapsody_batch(backlog)))
        assert backlog.taken() == batches[-1]
    assert [alone] in batches


def test_large_arguments_limit_a_batch():
    """Large arguments limit a batch, and a huge one travels alone."""
    policy, backlog = AdaptiveBatching(Batching(max_bytes=1000)), Backlog()
    for _ in range(100):
        policy.observe(task(0.0), 0.000001)
    backlog.add([task(0.0, A, b"x" * 300) for _ in range(20)] + [task(0.0, A, b"x" * 5000) for _ in range(3)])
    backlog.free = 0
    sizes = []
    while len(backlog):
        batch = policy.rhapsody_batch(backlog)
        sizes.append((len(batch), sum(len(each.args[1]) for each in batch)))
    assert all(count == 1 or total <= 1000 for count, total in sizes)
    assert sizes.count((1, 5000)) == 3
    assert max(count for count, _ in sizes) > 1


class Odd(dict[str, object]):
    """Its attributes are its items; one that is missing is a KeyError, which nobody expects of an attribute."""

    def __getattr__(self, name):
        return self[name]

    def __sizeof__(self):
        return self["size"]

    def __str__(self):
        return self["text"]

    def __call__(self):
        raise AssertionError("nothing runs here")


@pytest.mark.parametrize(
    "odd",
    [
        {"function": A, "args": (0.0, Odd())},
        {"function": A, "args": (0.0, Odd(nbytes=None))},
        {"function": Odd()},
        {"function": Odd(func=Odd())},
        {"function": Odd(func=types.SimpleNamespace(__code__=["no code"]))},
        {"executable": "true", "arguments": [Odd()]},
    ],
)
def test_unreadable_object_is_harmless(odd):
    """An object whose attributes cannot be read disturbs no batch."""
    policy, backlog = AdaptiveBatching(Batching(), executables=True), Backlog()
    odds = [ComputeTask(**odd) for _ in range(40)]
    for each in [task(0.0), odds[0]] * 100:
        policy.observe(each, 0.000001)
    backlog.add([*odds, *(task(0.0) for _ in range(40))])
    backlog.free = 0
    sizes = []
    while len(backlog):
        sizes.append(len(policy.rhapsody_batch(backlog)))
    assert sum(sizes) == 80
    assert max(sizes) > 1


def test_options_bound_or_disable_batches():
    """Options bound a batch's seconds and tasks, or switch batching off."""
    tasks = lambda: [task(0.001) for _ in range(2000)]  # noqa: E731  # three times the same
    off = Engine(2, 0.01, options=Batching(enabled=False))
    off.run(tasks())
    assert {len(batch) for batch in off.batches} == {1}
    few = Engine(2, 0.01, options=Batching(max_tasks=7))
    few.run(tasks())
    assert max(len(batch) for batch in few.batches) == 7
    timed = Engine(2, 0.01, options=Batching(target=0.03))
    timed.run(tasks())
    assert max(len(batch) for batch in timed.batches) <= 31


def test_canceled_tasks_are_skipped():
    """Canceled tasks are skipped and never counted."""
    backlog = Backlog()
    tasks = [task(0.0) for _ in range(10)]
    backlog.add(tasks)
    for canceled in (tasks[0], tasks[4], tasks[9]):
        canceled.state = canceled.state.__class__.CANCELED
    backlog.forget([tasks[0], tasks[4], tasks[9]])
    assert len(backlog) == 7
    assert backlog.peek() is tasks[1]
    assert backlog.sample() == [tasks[i] for i in (1, 2, 3, 5, 6, 7, 8)]
    assert backlog.take(4) == [tasks[i] for i in (1, 2, 3, 5)]
    backlog.put_back(backlog.taken())
    assert backlog.take_while(lambda each: each is not tasks[8]) == [tasks[i] for i in (1, 2, 3, 5, 6, 7)]
    assert len(backlog) == 1


def test_executables_may_share_a_batch():
    """Executables share a batch where the backend runs several, by their command lines."""
    policy = AdaptiveBatching(Batching(target=1.0), executables=True)
    for number in range(100):
        policy.observe(ComputeTask(executable="run", arguments=["--seed", number]), 0.001)
    backlog = Backlog()
    backlog.free = 0
    short = [ComputeTask(executable="run", arguments=["--seed", number]) for number in range(1000, 1040)]
    backlog.add([*short, ComputeTask(executable="run", arguments=["--all"]), *short])
    first = policy.rhapsody_batch(backlog)
    assert 1 < len(first) <= 40
    batch = first
    while batch[-1] is not short[-1]:
        batch = policy.rhapsody_batch(backlog)
    (unknown,) = policy.rhapsody_batch(backlog)
    assert "--all" in unknown.arguments
