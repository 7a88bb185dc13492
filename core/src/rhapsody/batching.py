"""The tasks that wait for one backend, and how they are grouped into the units that its engine charges for.

The model. An engine charges a cost c for every unit, whatever is in it; a worker runs the tasks of a unit one after
the other. With units of s seconds of work the engine is useful for s / (s + c) of its time, so a unit should hold
many times c. But what is in a unit waits for what is before it, so a unit must not be long where a slot could take
its tail, and must not be guessed long. Hence:

- c is measured: the time from submitting a unit to its last result, less the work in it, wherever the unit found a
  free slot. The target is 20 c, which loses 5%, and at least 10 ms and at most 5 s.
- The length of a function's next call is the mean of its past calls, weighted towards recent ones. A function of
  which n calls are known has at most n calls in a unit: units double while a function proves short. A unit that
  takes four times what was predicted makes its functions start again at one.
- A unit holds at most its share of what waits (a half of the backlog, divided by the slots), so that units shrink
  towards the end and all slots end together; but not less than c, below which splitting costs more than it gives.
- While slots are free, a unit holds at most what waits divided by the free slots: nothing queues behind something
  while a slot has nothing to do.
- A task of unknown length, an executable, and a task with resources or options of its own goes alone.

`AdaptiveBatching` has no clock and does no I/O; the runner tells it what was measured.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from inspect import isroutine
from typing import Any, Final

import attrs

from ._marker import hookimpl
from .capabilities import Batching
from .states import FINAL_STATES
from .task import ComputeTask

OVERHEAD: Final = 20.0  # seconds of work in a unit for each second that the engine charges for it
SHORTEST: Final = 0.01  # seconds
LONGEST: Final = 5.0  # seconds
SURPRISE: Final = 4.0  # a unit that takes this many times its prediction is learned from anew
MEMORY: Final = 50  # calls: the weight of the past in the mean of a function
_FUNCTIONS: Final = 4096  # functions remembered
_SMALL: Final = frozenset({type(None), bool, int, float, complex})


class Backlog:
    """The tasks that wait for one backend, in order of submission; canceled ones are passed over.

    Attributes:
        slots: tasks that the engine runs at the same time.
        free: slots that no unit in flight takes.
    """

    def __init__(self) -> None:
        self._tasks: deque[ComputeTask] = deque()
        self._waiting = 0
        self._taken: list[ComputeTask] = []
        self.slots = 1
        self.free = 1

    def __len__(self) -> int:
        """Return how many tasks wait."""
        return self._waiting

    def peek(self) -> ComputeTask:
        """Return the first task that waits.

        Raises:
            IndexError: none does.
        """
        tasks = self._tasks
        while tasks[0].state in FINAL_STATES:
            tasks.popleft()
        return tasks[0]

    def take(self, count: int) -> list[ComputeTask]:
        """Take up to `count` tasks off the front. What is taken must be returned from `rhapsody_batch`."""
        tasks = self._tasks
        taken: list[ComputeTask] = []
        while len(taken) < count and tasks:
            task = tasks.popleft()
            if task.state not in FINAL_STATES:
                taken.append(task)
        self._waiting -= len(taken)
        self._taken += taken
        return taken

    def take_while(self, wanted: Callable[[ComputeTask], bool]) -> list[ComputeTask]:
        """Take tasks off the front until one is not wanted, which stays."""
        tasks = self._tasks
        taken: list[ComputeTask] = []
        while tasks:
            task = tasks[0]
            if task.state in FINAL_STATES:
                tasks.popleft()
            elif wanted(task):
                tasks.popleft()
                taken.append(task)
            else:
                break
        self._waiting -= len(taken)
        self._taken += taken
        return taken

    def add(self, tasks: Sequence[ComputeTask]) -> None:
        """Put tasks at the end. The runner's."""
        self._tasks.extend(tasks)
        self._waiting += len(tasks)

    def put_back(self, tasks: Sequence[ComputeTask]) -> None:
        """Put tasks at the front, in order. The runner's."""
        self._tasks.extendleft(reversed(tasks))
        self._waiting += len(tasks)

    def forget(self, count: int) -> None:
        """Count off tasks that were canceled while they waited; they leave when their turn comes. The runner's."""
        self._waiting -= count
        if not self._waiting:
            self._tasks.clear()

    def taken(self) -> list[ComputeTask]:
        """Return what was taken since this was last called. The runner's."""
        taken, self._taken = self._taken, []
        return taken

    def drain(self) -> list[ComputeTask]:
        """Take everything. The runner's."""
        taken = self.take(len(self._tasks))
        self._taken = []
        return taken


@attrs.define
class _Known:
    """What is known of one function: the mean seconds of a call, and how many calls a unit may hold."""

    mean: float
    calls: int


class AdaptiveBatching:
    """Core's `rhapsody_batch`: groups function tasks by what was learned of them and of the engine.

    Args:
        options: what the user set.
    """

    def __init__(self, options: Batching) -> None:
        self.chose = False  # set when a unit was made here; the runner asks, since a backend may make its own
        self._options = options
        self._known: dict[Hashable, _Known] = {}
        self._mean = 0.0  # seconds of a call, over all functions
        self.unit_cost: float | None = None  # seconds that the engine charges for a unit

    @hookimpl(trylast=True)
    def rhapsody_batch(self, backlog: Backlog) -> Sequence[ComputeTask]:
        """Take the next unit."""
        self.chose = True
        first = backlog.peek()
        if not self._options.enabled or not _may_share(first) or len(backlog) <= backlog.free:
            return backlog.take(1)
        if self._known.get(key_of(first)) is None:
            return backlog.take(1)
        return backlog.take_while(self._fits(len(backlog), backlog.slots, backlog.free))

    def target(self) -> float:
        """Return the seconds of work that a unit should hold."""
        if self._options.target is not None:
            return self._options.target
        return min(LONGEST, max(SHORTEST, OVERHEAD * (self.unit_cost or 0.0)))

    def predict(self, tasks: Iterable[ComputeTask]) -> float:
        """Return the seconds that a unit of these tasks should take; 0 if one of them is unknown."""
        total = 0.0
        for task in tasks:
            known = self._known.get(key_of(task))
            if known is None:
                return 0.0
            total += known.mean
        return total

    def observe(self, task: ComputeTask, seconds: float) -> None:
        """Learn from one call."""
        if task.function is None:
            return
        key = key_of(task)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _FUNCTIONS:
                self._known.pop(next(iter(self._known)))
            self._known[key] = _Known(seconds, 1)
            self._mean = self._mean or seconds
            return
        known.calls += 1
        known.mean += (seconds - known.mean) / min(known.calls, MEMORY)
        self._mean += (seconds - self._mean) / MEMORY

    def observe_unit(self, tasks: Sequence[ComputeTask], predicted: float, work: float, cost: float | None) -> None:
        """Learn from a unit that has ended.

        Args:
            tasks: what was in it.
            predicted: what `predict` gave when it was submitted.
            work: seconds that its tasks took.
            cost: seconds that the engine took besides; None where the unit may have waited for a slot.
        """
        if cost is not None:
            cost = max(cost, 0.0)
            if self.unit_cost is None or cost < self.unit_cost:
                self.unit_cost = cost  # a delay is the machine's, the least delay is the engine's
            else:
                self.unit_cost += (cost - self.unit_cost) / MEMORY
        if 0.0 < SURPRISE * predicted < work and work > SHORTEST:
            for key in {key_of(task) for task in tasks}:
                if known := self._known.get(key):
                    known.mean = max(known.mean, work / len(tasks))
                    known.calls = 1

    def _fits(self, waiting: int, slots: int, free: int) -> Callable[[ComputeTask], bool]:
        """Return a test of whether the next task still belongs into the unit that is being made."""
        options = self._options
        share = waiting * self._mean / (2 * max(slots, 1))
        seconds = max(min(self.target(), share), self.unit_cost or 0.0)
        most = min(options.max_tasks, -(-waiting // max(free, 1)))
        known_of = self._known
        counts: dict[Hashable, int] = {}
        held, length, size = 0, 0.0, 0

        def fits(task: ComputeTask) -> bool:
            nonlocal held, length, size
            if held >= most or not _may_share(task):
                return False
            key = key_of(task)
            known = known_of.get(key)
            if known is None:
                return False
            count = counts.get(key, 0)
            longer, larger = length + known.mean, size + size_of(task)
            if held and (longer > seconds or larger > options.max_bytes or count >= known.calls):
                return False
            counts[key] = count + 1
            held, length, size = held + 1, longer, larger
            return True

        return fits


def key_of(task: ComputeTask) -> Any:
    """Return what stands for a task's function among the learned ones: its code, or else its type."""
    function: Any = task.function
    function = getattr(function, "func", function)  # a partial's own
    return getattr(function, "__code__", None) or (function if isroutine(function) else type(function))


def size_of(task: ComputeTask) -> int:
    """Return about how many bytes a task's arguments take, looking at the arguments but not into them."""
    if not task.args and not task.kwargs:
        return 0
    total = 0
    for value in (*task.args, *task.kwargs.values()):
        if type(value) not in _SMALL:
            nbytes = getattr(value, "nbytes", None)
            total += nbytes if isinstance(nbytes, int) else sys.getsizeof(value, 64)
    return total


def _may_share(task: ComputeTask) -> bool:
    return task.function is not None and task.resources is None and not task.backend_options
