"""The batching policy, on an engine that is simulated: no clock, no threads, the same on every machine."""

import heapq
import itertools
import random
import types

import pytest
from rhapsody.api import Batching, ComputeTask, Resources
from rhapsody.batching import AdaptiveBatching, Backlog


def function(name):
    def sleep(seconds, *_):
        raise AssertionError("nothing runs here")

    return types.FunctionType(sleep.__code__.replace(co_name=name), {})


A, B, C, D = (function(name) for name in "abcd")


def task(seconds, called=A, *more, **fields):
    return ComputeTask(function=called, args=(seconds, *more), **fields)


class Engine:
    """Workers that charge `cost` seconds for a unit and `task_cost` for each task, and report tasks as they end."""

    def __init__(self, slots, cost, task_cost=0.0, *, streams=True, spare=0, options=None):
        self.policy = AdaptiveBatching(options or Batching())
        self.slots, self.cost, self.task_cost, self.streams = slots, cost, task_cost, streams
        self.most = slots + spare
        self.units = []  # as lists of tasks, in the order of submission
        self.queued_behind = 0  # tasks put behind others while a slot would have stayed free

    def run(self, tasks):
        """Run a backlog; return its makespan in seconds."""
        backlog, now, counter = Backlog(), 0.0, itertools.count()
        backlog.slots = self.slots
        backlog.add(tasks)
        in_flight, idle, queue, events, known = 0, self.slots, [], [], len(self.units)

        def start(unit, submitted):
            end = now + self.cost
            for each in unit:
                end += each.args[0] + self.task_cost
                if self.streams:
                    heapq.heappush(events, (end, next(counter), each, None))
            heapq.heappush(events, (end, next(counter), None, (unit, submitted)))

        def pump():
            nonlocal in_flight, idle
            while len(backlog) and in_flight < self.most:
                backlog.free = max(0, self.slots - in_flight)
                unit = self.policy.rhapsody_batch(backlog)
                assert unit
                assert backlog.taken() == unit
                if backlog.free > 1 and len(backlog) < backlog.free - 1:
                    self.queued_behind += min(len(unit) - 1, backlog.free - 1 - len(backlog))
                self.units.append(unit)
                in_flight += 1
                if idle:
                    idle -= 1
                    start(unit, now if in_flight <= self.slots else None)
                else:
                    queue.append(unit)

        pump()
        while events:
            now, _, ended, finished = heapq.heappop(events)
            if ended is not None:
                self.policy.observe(ended, ended.args[0])
                continue
            unit, submitted = finished
            if not self.streams:
                for each in unit:
                    self.policy.observe(each, each.args[0])
            if submitted is not None:
                self.policy.observe_unit(len(unit), now - submitted - sum(each.args[0] for each in unit))
            in_flight -= 1
            if queue:
                start(queue.pop(0), None)
            else:
                idle += 1
            pump()
        ran = list(itertools.chain(*self.units[known:]))
        assert ran == tasks  # each once, and in order
        return now

    def best(self, tasks):
        """Return the makespan of one who keeps the order, charges each slot one unit, and splits perfectly."""
        ends = [self.cost] * self.slots
        for each in tasks:
            heapq.heapreplace(ends, ends[0] + each.args[0] + self.task_cost)
        return max(ends)


SLOTS = (2, 4, 16, 64)
COSTS = (0.0001, 0.25)


def with_long_ones(count, short, times, chance=0.01, seed=7):
    chosen = random.Random(seed)
    return [task(short * (times if chosen.random() < chance else 1)) for _ in range(count)]


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("streams", [True, False])
def test_equal_tasks_cost_at_most_fifteen_percent_more_than_the_best_possible_makespan(slots, cost, streams):
    tasks = [task(cost / 2) for _ in range(200 * slots)]
    engine = Engine(slots, cost, streams=streams)
    assert engine.run(tasks) <= 1.15 * engine.best(tasks)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("times", [20, 100])
def test_one_percent_of_long_tasks_among_short_ones_cost_at_most_fifteen_percent(slots, cost, times):
    tasks = with_long_ones(600 * slots, cost / 2, times)
    engine = Engine(slots, cost)
    assert engine.run(tasks) <= 1.15 * engine.best(tasks)


@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("cost", COSTS)
def test_functions_of_unlike_lengths_that_come_interleaved_cost_at_most_fifteen_percent(slots, cost):
    lengths = ((A, 0.01), (B, 0.1), (C, 1.0), (D, 4.0))
    tasks = [task(cost * length, called) for _ in range(50 * slots) for called, length in lengths]
    engine = Engine(slots, cost)
    assert engine.run(tasks) <= 1.15 * engine.best(tasks)


@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("law", ["shrinking", "growing", "exponential"])
def test_functions_whose_length_changes_or_scatters_cost_at_most_fifteen_percent(slots, law):
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
def test_a_function_that_turns_a_hundred_times_longer_costs_no_more_than_what_was_in_flight(slots):
    cost = 0.05
    tasks = [task(cost / 10 * (1 if i < 70 * slots else 100)) for i in range(100 * slots)]
    engine = Engine(slots, cost)
    assert engine.run(tasks) <= 2 * engine.best(tasks)


@pytest.mark.parametrize("slots", SLOTS)
def test_a_short_backlog_of_tiny_tasks_takes_few_rounds_of_an_expensive_engine(slots):
    engine = Engine(slots, cost=0.25)
    tasks = [task(0.0001) for _ in range(200 * slots)]
    assert (engine.run(tasks) - engine.best(tasks)) / engine.cost <= 6 + 0.8 * slots**0.5


@pytest.mark.parametrize("spare", [0, 2])
def test_what_one_workload_taught_is_used_by_the_next(spare):
    engine = Engine(2, 0.05, spare=spare)
    engine.run([task(0.001) for _ in range(2000)])
    before, again = len(engine.units), [task(0.001) for _ in range(2000)]
    assert engine.run(again) <= 1.25 * engine.best(again)
    assert len(engine.units) - before <= 12


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 17])
def test_no_task_waits_behind_another_while_a_slot_is_free(count):
    engine = Engine(8, 0.01)
    engine.run([task(0.0001) for _ in range(500)])
    known = engine.queued_behind
    engine.run([task(0.0001) for _ in range(count)])
    assert engine.queued_behind == known == 0


def test_a_unit_starts_at_one_grows_while_tasks_prove_short_and_shrinks_at_the_end():
    engine = Engine(2, 0.002)
    engine.run([task(0.0001) for _ in range(20_000)])
    sizes = [len(unit) for unit in engine.units]
    assert sizes[:2] == [1, 1]
    assert max(sizes) * 0.0001 >= 10 * engine.cost
    assert sizes[-1] * 0.0001 <= 2.5 * engine.cost
    assert len(sizes) < 120


def test_a_task_of_unknown_length_goes_alone_and_ends_the_unit_before_it():
    engine = Engine(2, 0.002)
    engine.run([task(0.0001) for _ in range(100)])
    known = len(engine.units)
    engine.run([*(task(0.0001) for _ in range(50)), task(3.0, B), *(task(0.0001) for _ in range(50))])
    (alone,) = [unit for unit in engine.units[known:] if any(each.function is B for each in unit)]
    assert len(alone) == 1


def test_long_tasks_are_never_put_into_one_unit():
    engine = Engine(4, 0.0001)
    engine.run([task(1.0) for _ in range(40)])
    assert {len(unit) for unit in engine.units} == {1}


def test_what_the_engine_charges_for_each_task_is_told_from_what_it_charges_for_a_unit():
    engine = Engine(2, cost=0.02, task_cost=0.0005)
    engine.run([task(0.0001) for _ in range(20_000)])
    assert engine.policy.unit_cost == pytest.approx(0.02, rel=0.1)
    assert engine.policy.task_cost == pytest.approx(0.0005, rel=0.2)


def test_one_slow_moment_does_not_make_every_later_unit_a_small_one():
    policy = AdaptiveBatching(Batching())
    for _ in range(4):
        policy.observe(task(0.0001), 0.0001)
    policy.observe_unit(1, 0.25)
    policy.observe_unit(4, 2.5)  # the machine was busy: the engine charges 0.25 s for a unit, and nothing for a task
    backlog = Backlog()
    backlog.slots, backlog.free = 2, 0
    backlog.add([task(0.0001) for _ in range(2000)])
    units = 0
    while len(backlog):
        unit = policy.rhapsody_batch(backlog)
        backlog.taken()
        for each in unit:
            policy.observe(each, 0.0001)
        policy.observe_unit(len(unit), 0.25)
        units += 1
    assert units < 50


def test_a_delay_of_the_machine_is_not_taken_for_the_price_of_a_unit():
    policy = AdaptiveBatching(Batching())
    for charged in (0.9, 0.002, 0.5, 0.0021, 0.4):
        policy.observe_unit(1, charged)
    assert policy.unit_cost < 0.03


@pytest.mark.parametrize(
    "special",
    [
        {"executable": "true"},
        {"function": A, "resources": Resources(ranks=2)},
        {"function": A, "backend_options": {"key": 1}},
    ],
)
def test_executables_and_tasks_with_resources_or_options_travel_alone(special):
    policy, backlog = AdaptiveBatching(Batching()), Backlog()
    policy.observe(task(0.0), 0.000001)
    for _ in range(100):
        policy.observe(task(0.0), 0.000001)
    alone = ComputeTask(**special)
    backlog.add([*(task(0.0) for _ in range(5)), alone, *(task(0.0) for _ in range(50))])
    backlog.free = 0
    units = []
    while len(backlog):
        units.append(list(policy.rhapsody_batch(backlog)))
        assert backlog.taken() == units[-1]
    assert [alone] in units


def test_large_arguments_limit_a_unit_and_a_huge_one_travels_alone():
    policy, backlog = AdaptiveBatching(Batching(max_bytes=1000)), Backlog()
    for _ in range(100):
        policy.observe(task(0.0), 0.000001)
    backlog.add([task(0.0, A, b"x" * 300) for _ in range(20)] + [task(0.0, A, b"x" * 5000) for _ in range(3)])
    backlog.free = 0
    sizes = []
    while len(backlog):
        unit = policy.rhapsody_batch(backlog)
        sizes.append((len(unit), sum(len(each.args[1]) for each in unit)))
    assert all(count == 1 or total <= 1000 for count, total in sizes)
    assert sizes.count((1, 5000)) == 3
    assert max(count for count, _ in sizes) > 1


class Odd(dict):
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
def test_an_object_whose_attributes_cannot_be_asked_for_disturbs_no_unit(odd):
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


def test_options_set_the_seconds_and_the_tasks_of_a_unit_or_switch_batching_off():
    tasks = lambda: [task(0.001) for _ in range(2000)]  # noqa: E731  # three times the same
    off = Engine(2, 0.01, options=Batching(enabled=False))
    off.run(tasks())
    assert {len(unit) for unit in off.units} == {1}
    few = Engine(2, 0.01, options=Batching(max_tasks=7))
    few.run(tasks())
    assert max(len(unit) for unit in few.units) == 7
    timed = Engine(2, 0.01, options=Batching(target=0.03))
    timed.run(tasks())
    assert max(len(unit) for unit in timed.units) <= 31


def test_canceled_tasks_are_passed_over_and_never_counted():
    backlog = Backlog()
    tasks = [task(0.0) for _ in range(10)]
    backlog.add(tasks)
    for canceled in (tasks[0], tasks[4], tasks[9]):
        canceled.state = canceled.state.__class__.CANCELED
    backlog.forget(3)
    assert len(backlog) == 7
    assert backlog.peek() is tasks[1]
    assert backlog.sample() == [tasks[i] for i in (1, 2, 3, 5, 6, 7, 8)]
    assert backlog.take(4) == [tasks[i] for i in (1, 2, 3, 5)]
    backlog.put_back(backlog.taken())
    assert backlog.take_while(lambda each: each is not tasks[8]) == [tasks[i] for i in (1, 2, 3, 5, 6, 7)]
    assert len(backlog) == 1


def test_executables_share_a_unit_where_the_backend_runs_several_and_are_told_apart_by_their_command_lines():
    policy = AdaptiveBatching(Batching(target=1.0), executables=True)
    for number in range(100):
        policy.observe(ComputeTask(executable="run", arguments=["--seed", number]), 0.001)
    backlog = Backlog()
    backlog.free = 0
    short = [ComputeTask(executable="run", arguments=["--seed", number]) for number in range(1000, 1040)]
    backlog.add([*short, ComputeTask(executable="run", arguments=["--all"]), *short])
    first = policy.rhapsody_batch(backlog)
    assert 1 < len(first) <= 40
    unit = first
    while unit[-1] is not short[-1]:
        unit = policy.rhapsody_batch(backlog)
    (unknown,) = policy.rhapsody_batch(backlog)
    assert "--all" in unknown.arguments
