"""An engine that is simulated: no clock, no I/O."""

import heapq
import itertools
import types
from typing import Any

from rhapsody.api import Batching, ComputeTask
from rhapsody.scheduling.backlog import Backlog
from rhapsody.scheduling.batching import AdaptiveBatching


def function(name):
    def sleep(seconds, *_):
        raise AssertionError("nothing runs here")

    return types.FunctionType(sleep.__code__.replace(co_name=name), {})


A, B, C, D = (function(name) for name in "abcd")


def task(seconds, called=A, *more, **fields):
    return ComputeTask(function=called, args=(seconds, *more), **fields)


class Engine:
    """Workers that charge `cost` seconds for a batch and `task_cost` for each task, and report tasks as they end."""

    def __init__(self, slots, cost, task_cost=0.0, *, streams=True, spare=0, options=None):
        self.policy = AdaptiveBatching(options or Batching())
        self.slots, self.cost, self.task_cost, self.streams = slots, cost, task_cost, streams
        self.most = slots + spare
        self.batches = []  # as lists of tasks, in the order of submission
        self.queued_behind = 0  # tasks put behind others while a slot would have stayed free

    def run(self, tasks):
        """Run a backlog; return its makespan in seconds."""
        backlog, now, counter = Backlog(), 0.0, itertools.count()
        backlog.slots = self.slots
        backlog.add(tasks)
        in_flight, idle, known = 0, self.slots, len(self.batches)
        queue: list[Any] = []
        events: list[Any] = []

        def start(batch, submitted):
            end = now + self.cost
            for each in batch:
                end += each.args[0] + self.task_cost
                if self.streams:
                    heapq.heappush(events, (end, next(counter), each, None))
            heapq.heappush(events, (end, next(counter), None, (batch, submitted)))

        def pump():
            nonlocal in_flight, idle
            while len(backlog) and in_flight < self.most:
                backlog.free = max(0, self.slots - in_flight)
                batch = self.policy.rhapsody_batch(backlog)
                assert batch
                assert backlog.taken() == batch
                if backlog.free > 1 and len(backlog) < backlog.free - 1:
                    self.queued_behind += min(len(batch) - 1, backlog.free - 1 - len(backlog))
                self.batches.append(batch)
                in_flight += 1
                if idle:
                    idle -= 1
                    start(batch, now if in_flight <= self.slots else None)
                else:
                    queue.append(batch)

        pump()
        while events:
            now, _, ended, finished = heapq.heappop(events)
            if ended is not None:
                self.policy.observe(ended, ended.args[0])
                continue
            batch, submitted = finished
            if not self.streams:
                for each in batch:
                    self.policy.observe(each, each.args[0])
            if submitted is not None:
                self.policy.observe_batch(len(batch), now - submitted - sum(each.args[0] for each in batch))
            in_flight -= 1
            if queue:
                start(queue.pop(0), None)
            else:
                idle += 1
            pump()
        ran = list(itertools.chain(*self.batches[known:]))
        assert ran == tasks  # each once, and in order
        return now

    def best(self, tasks):
        """Return the makespan of one who keeps the order, charges each slot one batch, and splits perfectly."""
        ends = [self.cost] * self.slots
        for each in tasks:
            heapq.heapreplace(ends, ends[0] + each.args[0] + self.task_cost)
        return max(ends)
