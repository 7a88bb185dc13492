"""The tasks that wait for one backend, and how they are grouped into the units that its engine charges for.

The model. An engine charges a cost c for every unit, and k for every task in it; a worker runs the tasks of a unit
one after the other. With units of s seconds of work the engine is useful for s / (s + c) of its time, so a unit should
hold many times c. But what is in a unit waits for what is before it, so a unit must not be long where a slot could take
its tail, and must not be guessed long. Hence:

- c and k are measured: the time from submitting a unit to its last result, less the work in it, wherever the unit found
  a free slot. The target is 20 c, which loses 5%, and at least 20 ms and at most 5 s.
- The length of a function's next call is the mean of its past calls, with their variance; the past weighs no more than
  300 calls, so that functions may change.
- A function of which n calls are known has at most 2 n / sqrt(slots) calls in a unit, and four times that while the
  unit is no longer than c: all slots learn at once, so what is known still grows about tenfold in a round, and what is
  risked stays in proportion to what is known.
- Towards the end of the backlog, units are cut in rounds of one for each slot. A round holds between a half and three
  quarters of what waits, the less the more its functions vary; the last one, of at most 2 c for each slot, holds all.
  The share is of seconds and also of tasks: where lengths were guessed badly, no slot has more than its part of them.
- While slots are free, a unit holds at most what waits divided by the free slots: nothing queues behind something
  while a slot has nothing to do.
- A task of unknown length, and a task with resources or options of its own goes alone. An executable does too, unless
  the backend declares `batch_executables`; then those are taken for the same whose command lines differ in digits only.

`AdaptiveBatching` has no clock and does no I/O; what was measured is told to it. `tests/core/test_batching.py` runs it
on a simulated engine, and has the figures.
"""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from inspect import isroutine
from itertools import islice
from math import ceil, sqrt
from types import CodeType, FunctionType
from typing import Any, Final

import attrs

from ._marker import hookimpl
from .capabilities import Batching
from .states import FINAL_STATES
from .task import ComputeTask

OVERHEAD: Final = 20.0  # seconds of work in a unit for each second that the engine charges for it
SHORTEST: Final = 0.02  # seconds
LONGEST: Final = 5.0  # seconds
MEMORY: Final = 300  # calls: the weight of the past in what is known of a function
GROWTH: Final = 2.0  # calls in the units of sqrt(slots) slots for each call that is known
BOLD: Final = 4.0  # times as many, while they are predicted to take less than the engine charges for a unit
HALF: Final = 0.5  # the least part of what waits that goes into one round of units
MOST: Final = 0.75  # the largest part, unless the round is the last
LAST: Final = 2.0  # a round with less work than this many c for each slot is the last
SPREAD: Final = 2.0  # standard deviations of a slot's share that are left for later rounds
_SLOW: Final = 50  # units: how slowly what the engine charges is believed to have grown
_DOUBT: Final = 900  # tasks: a slow moment says little of what few tasks are charged, and must not make all units small
_SAMPLE: Final = 64  # waiting tasks that are looked at, to know what waits
_HORIZON: Final = 2_000  # waiting tasks among which they are chosen
_FUNCTIONS: Final = 4096  # functions remembered
_SMALL: Final = frozenset({type(None), bool, int, float, complex})
_UNKNOWN: Final = 64  # bytes that an object is taken for which does not tell
_DIGITS: Final = re.compile(r"\d+")
_LINE: Final = 1000  # characters of a command line by which a program is known


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

    def sample(self) -> list[ComputeTask]:
        """Return some of the tasks that wait, evenly spaced among those at the front."""
        reach = min(len(self._tasks), _HORIZON)
        sample = list(islice(self._tasks, 0, reach, max(1, reach // _SAMPLE)))
        return [task for task in sample if task.state not in FINAL_STATES]

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
    """What is known of one function: how many seconds its calls take, how much they vary, and how many there were."""

    mean: float
    variance: float = 0.0
    calls: int = 1


@attrs.define
class _Round:
    """How large the next units may be."""

    seconds: float
    tasks: int
    units: int  # that are left of it
    waiting: int  # tasks, after its latest unit


class AdaptiveBatching:
    """Core's `rhapsody_batch`: groups tasks by what was learned of them and of the engine.

    Args:
        options: what the user set.
        executables: whether executables are grouped too.

    Attributes:
        chose: set when a unit was made here; whoever calls the hook clears it, since a backend may make its own units.
        unit_cost: seconds that the engine charges for a unit; None while that is unknown.
        task_cost: seconds that it charges for each task in it.
    """

    def __init__(self, options: Batching, *, executables: bool = False) -> None:
        self.chose = False
        self.unit_cost: float | None = None
        self.task_cost: float | None = None
        self._options = options
        self._executables = executables
        self._known: dict[Hashable, _Known] = {}
        self._latest: tuple[Any, _Known] = (None, _Known(0.0))  # function, and what is known of it: they come in rows
        self._round = _Round(0.0, 1, 0, 0)

    @hookimpl(trylast=True)
    def rhapsody_batch(self, backlog: Backlog) -> Sequence[ComputeTask]:
        """Take the next unit."""
        self.chose = True
        first, waiting = backlog.peek(), len(backlog)
        if not self._options.enabled or waiting <= backlog.free or not self._may_share(first):
            return backlog.take(1)
        if key_of(first) not in self._known:
            return backlog.take(1)
        plan = self._round
        if not plan.units or waiting > plan.waiting:
            plan = self._round = self._plan(backlog)
        unit = backlog.take_while(self._fits(plan, backlog))
        plan.units -= 1
        plan.waiting = len(backlog)
        return unit

    def target(self) -> float:
        """Return the seconds of work that a unit should hold."""
        if self._options.target is not None:
            return self._options.target
        return min(LONGEST, max(SHORTEST, OVERHEAD * (self.unit_cost or 0.0)))

    def observe(self, task: ComputeTask, seconds: float) -> None:
        """Learn from one call."""
        if task.function is None and not self._executables:
            return
        if task.function is not None and task.function is self._latest[0]:
            known = self._latest[1]
        else:
            key = key_of(task)
            found = self._known.get(key)
            if found is None:
                if len(self._known) >= _FUNCTIONS:
                    self._known.pop(next(iter(self._known)))
                self._known[key] = _Known(seconds)
                return
            known = found
            self._latest = (task.function, known)
        known.calls += 1
        weight = 1 / min(known.calls, MEMORY)
        change = seconds - known.mean
        known.mean += weight * change
        known.variance = (1 - weight) * (known.variance + weight * change * change)

    def observe_unit(self, tasks: int, charged: float) -> None:
        """Learn from a unit that has ended, and found a free slot when it was submitted.

        Args:
            tasks: how many were in it.
            charged: seconds that it took beside the work of its tasks.
        """
        charged = max(charged, 0.0)
        if tasks > 1 and self.unit_cost is not None:
            each = max(charged - self.unit_cost, 0.0) / tasks
            known = self.task_cost or 0.0
            self.task_cost = known + (each - known) * tasks / (tasks + _DOUBT)
            charged = max(charged - tasks * self.task_cost, 0.0)
        self.unit_cost = _least(self.unit_cost, charged)

    def _may_share(self, task: ComputeTask) -> bool:
        may = task.function is not None or self._executables
        return may and task.resources is None and not task.backend_options

    def _plan(self, backlog: Backlog) -> _Round:
        """Decide on the next round of units, one for each slot."""
        waiting, slots = len(backlog), max(backlog.slots, 1)
        mean, variance = self._expected(backlog.sample())
        each = waiting / slots  # tasks
        share = each * mean  # seconds
        cost = self.unit_cost or 0.0
        if share <= LAST * cost:
            seconds, tasks = share, each
        else:
            part = min(MOST, max(HALF, 1 - SPREAD * sqrt(variance * each) / share)) if share else MOST
            seconds, tasks = max(share * part, cost), each * HALF
        return _Round(min(self.target(), seconds), max(1, ceil(tasks)), slots, waiting)

    def _expected(self, sample: Sequence[ComputeTask]) -> tuple[float, float]:
        """Return the mean and the variance of the seconds that one of these takes; unknown ones are left out."""
        known = [found for task in sample if (found := self._known.get(key_of(task))) is not None]
        count = max(len(known), 1)
        mean = sum(each.mean for each in known) / count
        return mean + (self.task_cost or 0.0), sum(each.variance for each in known) / count

    def _fits(self, plan: _Round, backlog: Backlog) -> Callable[[ComputeTask], bool]:
        """Return a test of whether the next task still belongs into the unit that is being made."""
        options, known_of = self._options, self._known
        seconds, cost, extra = plan.seconds, self.unit_cost or 0.0, self.task_cost or 0.0
        most = min(options.max_tasks, plan.tasks)
        if backlog.free:
            most = min(most, -(-len(backlog) // backlog.free))
        growth = GROWTH / sqrt(max(backlog.slots, 1))
        counts: dict[int, int] = {}  # by identity of what is known
        function: Any = None
        known: _Known | None = None
        held, length, size = 0, 0.0, 0

        def fits(task: ComputeTask) -> bool:
            nonlocal function, known, held, length, size
            if held >= most or not self._may_share(task):
                return False
            if task.function is None or task.function is not function:
                function, known = task.function, known_of.get(key_of(task))
            if known is None:
                return False
            count = counts.get(id(known), 0)
            longer, larger = length + known.mean + extra, size + size_of(task)
            if held:
                trusted = known.calls * growth * (BOLD if longer <= cost else 1.0)
                if longer > seconds or larger > options.max_bytes or count >= trusted:
                    return False
            counts[id(known)] = count + 1
            held, length, size = held + 1, longer, larger
            return True

        return fits


def _least(old: float | None, new: float) -> float:
    """Believe a smaller charge at once, a larger one slowly: a delay is the machine's, the least is the engine's."""
    return new if old is None or new < old else old + (new - old) / _SLOW


def key_of(task: ComputeTask) -> Any:
    """Return what stands for a task among the learned ones: a function's code, or else its type; a command line."""
    function: Any = task.function
    if type(function) is FunctionType:
        return function.__code__
    try:
        return _command_line(task) if function is None else _code_of(function)
    except Exception:  # its attributes and its text are code of the user's
        return type(function)


def _command_line(task: ComputeTask) -> str:
    line = f"{task.executable} {' '.join(map(str, task.arguments))}"
    return _DIGITS.sub("0", line[:_LINE])


def _code_of(function: Any) -> Any:
    function = getattr(function, "func", function)  # a partial's own
    code = getattr(function, "__code__", None)
    if isinstance(code, CodeType):
        return code
    return function if isroutine(function) else type(function)


def size_of(task: ComputeTask) -> int:
    """Return about how many bytes a task's arguments take, looking at the arguments but not into them."""
    if not task.args and not task.kwargs:
        return 0
    total = 0
    for value in (*task.args, *task.kwargs.values()):
        if type(value) not in _SMALL:
            try:
                nbytes = getattr(value, "nbytes", None)
                total += nbytes if isinstance(nbytes, int) else sys.getsizeof(value, _UNKNOWN)
            except Exception:  # its attributes are code of the user's
                total += _UNKNOWN
    return total
