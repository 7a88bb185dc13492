"""The tasks that wait for one backend, and how they are grouped into the batches that its engine charges for.

The model. An engine charges a cost c for every batch, and k for every task in it; a worker runs the tasks of a batch
one after the other. With batches of s seconds of work the engine is useful for s / (s + c) of its time, so a batch
should hold many times c. But what is in a batch waits for what is before it, so a batch must not be long where a slot
could take its tail, and must not be guessed long. Hence:

- c and k are measured: the time from submitting a batch to its last result, less the work in it, wherever the batch
  found a free slot. The target is 20 c, which loses 5%, and at least 20 ms and at most 5 s.
- The length of a function's next call is the mean of its past calls, with their variance; the past weighs no more than
  300 calls, so that functions may change.
- A function of which n calls are known has at most 2 n / sqrt(slots) calls in a batch, and four times that while the
  batch is no longer than c: all slots learn at once, so what is known still grows about tenfold in a round, and what is
  risked stays in proportion to what is known.
- Towards the end of the backlog, batches are cut in rounds of one for each slot. A round holds between a half and three
  quarters of what waits, the less the more its functions vary; the last one, of at most 2 c for each slot, holds all.
  The share is of seconds and also of tasks: where lengths were guessed badly, no slot has more than its part of them.
- While slots are free, a batch holds at most what waits divided by the free slots: nothing queues behind something
  while a slot has nothing to do.
- What came back from a batch, in which a task was long, say, goes out in batches small enough to reach all slots twice:
  what stood beside it may be as long.
- A task of unknown length or with resources, a timeout or options of its own goes alone. An executable does too, unless
  the backend declares `batch_executables`; then those are taken for the same whose command lines differ in digits only.

`AdaptiveBatching` has no clock and does no I/O; what was measured is passed to it. `tests/core/scheduling` runs it
on a simulated engine, and has the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import ceil, sqrt
from typing import Any, Final

import attrs

from rhapsody.hookspecs import hookimpl
from rhapsody.model.identity import size_of
from rhapsody.model.kinds import EXECUTABLE, FUNCTION, key_of
from rhapsody.model.task import ComputeTask
from rhapsody.scheduling.backlog import Backlog
from rhapsody.scheduling.estimates import MEMORY, Known, least, slowly
from rhapsody.seam.capabilities import Batching

OVERHEAD: Final = 20.0  # seconds of work in a batch for each second that the engine charges for it
SHORTEST: Final = 0.02  # seconds
LONGEST: Final = 5.0  # seconds
GROWTH: Final = 2.0  # calls in the batches of sqrt(slots) slots for each call that is known
BOLD: Final = 4.0  # times as many, while they are predicted to take less than the engine charges for a batch
HALF: Final = 0.5  # the least part of what waits that goes into one round of batches
MOST: Final = 0.75  # the largest part, unless the round is the last
LAST: Final = 2.0  # a round with less work than this many c for each slot is the last
SPREAD: Final = 2.0  # standard deviations of a slot's share that are left for later rounds
_DOUBT: Final = 900  # tasks: one slow moment must not make all batches small
_CERTAIN: Final = 4.0  # a rest that is at least a charge divided by this is believed to be the batch's own
_FUNCTIONS: Final = 4096  # functions remembered
_NO_FUNCTION: Final = object()  # equal to no task's `function`, which is None for the other kinds


@attrs.define
class _Round:
    """How large the next batches may be."""

    seconds: float
    tasks: int
    batches: int  # that are left of it
    waiting: int  # tasks, after its latest batch


class LearnedBatch(list[ComputeTask]):
    """A batch that `AdaptiveBatching` chose: what becomes of it is reported to `observe` and `observe_batch`.

    A backend may choose its own batches (`rhapsody_batch`), and of those nothing can be learned.
    """


def problem_with(answer: object, taken: Sequence[ComputeTask]) -> str | None:
    """Return what is wrong with the answer of `rhapsody_batch`, or with the exception that it raised; None for nothing.

    Args:
        answer: what it returned or raised.
        taken: what it took off the backlog.
    """
    if isinstance(answer, Exception):
        return f"raised {type(answer).__name__}: {answer}"
    tasks: Sequence[ComputeTask] = answer if isinstance(answer, Sequence) else ()
    if not len(tasks) == len(taken) > 0:
        return "must return the tasks that it took off the backlog, at least one"
    if type(answer) is not LearnedBatch and tasks != taken and {*map(id, taken)} != {*map(id, tasks)}:
        return "returned other tasks than it took off the backlog"
    return None


class AdaptiveBatching:
    """Core's `rhapsody_batch`: groups tasks by what was learned of them and of the engine.

    Args:
        options: what the user set.
        executables: whether executables are grouped too.

    Attributes:
        batch_cost: seconds that the engine charges for a batch; None while that is unknown.
        task_cost: seconds that it charges for each task in it.
    """

    def __init__(self, options: Batching, *, executables: bool = False) -> None:
        self.batch_cost: float | None = None
        self.task_cost: float | None = None
        self._options = options
        self._executables = executables
        self._known: dict[Hashable, Known] = {}
        self._latest: tuple[Any, Known] = (
            _NO_FUNCTION,
            Known(0.0),
        )  # function, and what is known of it: they come in rows
        self._round = _Round(0.0, 1, 0, 0)
        self._doubtful = 0  # tasks at the front of the backlog that came back
        self._portion = 1  # of which a batch may hold this many

    @hookimpl(trylast=True)
    def rhapsody_batch(self, backlog: Backlog) -> Sequence[ComputeTask]:
        """Take the next batch."""
        taken = self._choose(backlog)
        self._doubtful = max(0, self._doubtful - len(taken))
        return taken

    def _choose(self, backlog: Backlog) -> LearnedBatch:
        first, waiting = backlog.peek(), len(backlog)
        if not self._options.enabled or waiting <= backlog.free or not self._may_share(first):
            return LearnedBatch(backlog.take(1))
        if key_of(first) not in self._known:
            return LearnedBatch(backlog.take(1))
        plan = self._round
        if not plan.batches or waiting > plan.waiting:
            plan = self._round = self._plan(backlog)
        batch = LearnedBatch(backlog.take_while(self._fits(plan, backlog)))
        plan.batches -= 1
        plan.waiting = len(backlog)
        return batch

    def distrust(self, tasks: int, slots: int) -> None:
        """Learn that tasks came back from a batch, and are at the front of the backlog."""
        self._doubtful += tasks
        self._portion = max(1, self._doubtful // (2 * max(1, slots)))

    def target(self) -> float:
        """Return the seconds of work that a batch should hold."""
        if self._options.target is not None:
            return self._options.target
        return min(LONGEST, max(SHORTEST, OVERHEAD * (self.batch_cost or 0.0)))

    def length_of(self, task: ComputeTask) -> float | None:
        """Return the seconds that a task is expected to take; None where nothing like it has ended."""
        known = self._known.get(key_of(task))
        return None if known is None else known.mean

    def observe(self, task: ComputeTask, seconds: float) -> None:
        """Learn from one call."""
        if task.function is self._latest[0]:
            known = self._latest[1]
        elif task.kind is EXECUTABLE and not self._executables and task.resources is None:
            return
        else:
            key = key_of(task)
            found = self._known.get(key)
            if found is None:
                if len(self._known) >= _FUNCTIONS:
                    self._known.pop(next(iter(self._known)))
                self._known[key] = Known(seconds)
                return
            known = found
            self._latest = (_function_of(task), known)
        known.calls += 1
        weight = 1 / min(known.calls, MEMORY)
        change = seconds - known.mean
        known.mean += weight * change
        known.variance = (1 - weight) * (known.variance + weight * change * change)

    def observe_batch(self, tasks: int, charged: float) -> None:
        """Learn from a batch that has ended, and found a free slot when it was submitted.

        Args:
            tasks: how many were in it.
            charged: seconds that it took beside the work of its tasks.
        """
        charged = max(charged, 0.0)
        if tasks == 1 or self.batch_cost is None:
            self.batch_cost = least(self.batch_cost, charged)
            return
        each = max(charged - self.batch_cost, 0.0) / tasks
        known = self.task_cost or 0.0
        self.task_cost = known + (each - known) * tasks / (tasks + _DOUBT)
        # A small rest of a large charge is uncertain. Believed at once, it would make batches seem free after slow
        # moments, in which tasks seemed expensive, and so make all later batches small.
        rest = max(charged - tasks * self.task_cost, 0.0)
        if rest >= charged / _CERTAIN:
            self.batch_cost = least(self.batch_cost, rest)
        else:
            self.batch_cost = min(charged, slowly(self.batch_cost, rest))

    def _may_share(self, task: ComputeTask) -> bool:
        may = self._executables or task.kind is not EXECUTABLE
        may = may and task.resources is None and not task.backend_options
        return may and (task.policies is None or task.policies.may_share)

    def _plan(self, backlog: Backlog) -> _Round:
        """Decide on the next round of batches, one for each slot."""
        waiting, slots = len(backlog), max(backlog.slots, 1)
        mean, variance = self._expected(backlog.sample())
        each = waiting / slots  # tasks
        share = each * mean  # seconds
        cost = self.batch_cost or 0.0
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
        """Return a test of whether the next task still belongs into the batch that is being made."""
        options, known_of = self._options, self._known
        seconds, cost, extra = plan.seconds, self.batch_cost or 0.0, self.task_cost or 0.0
        most = min(options.max_tasks, plan.tasks)
        if self._doubtful:
            most = min(most, self._portion)
        if backlog.free:
            most = min(most, -(-len(backlog) // backlog.free))
        growth = GROWTH / sqrt(max(backlog.slots, 1))
        counts: dict[int, int] = {}  # by identity of what is known
        function: Any = _NO_FUNCTION
        known: Known | None = None
        held, length, size = 0, 0.0, 0

        def fits(task: ComputeTask) -> bool:
            nonlocal function, known, held, length, size
            if held >= most or not self._may_share(task):
                return False
            if task.function is not function:
                function, known = _function_of(task), known_of.get(key_of(task))
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


def _function_of(task: ComputeTask) -> Any:
    """Return the function by which the next task is recognized without computing its key."""
    return task.function if task.kind is FUNCTION else _NO_FUNCTION
