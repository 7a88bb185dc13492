"""A change of a task's state, as observers see it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat, starmap
from typing import Any, overload

import attrs

from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask


@attrs.define(eq=False)
class Transition:
    """One change of one task's state.

    Attributes:
        task: whose fields are already those after the change, and after later ones reported with it.
        old: the state that it left.
        new: the state that it entered.
        at: seconds since the epoch: when the session took it for QUEUED, when it started or ended for the others.
    """

    task: ComputeTask
    old: TaskState
    new: TaskState
    at: float


Change = tuple[ComputeTask, TaskState, TaskState, float]  # the fields of a transition


class Transitions(Sequence[Transition]):
    """Transitions of many tasks, in order; each object is made when it is asked for.

    Thousands of objects at once would keep the garbage collector busy. `changes` costs less than iterating.

    Args:
        flat: task, old state, new state and time of each, one after the other.
    """

    def __init__(self, flat: list[Any]) -> None:
        self._flat = flat

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._flat) // 4

    def __iter__(self) -> Iterator[Transition]:
        """Yield them in order."""
        return starmap(Transition, self.changes())

    @overload
    def __getitem__(self, index: int) -> Transition: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Transition]: ...

    def __getitem__(self, index: int | slice) -> Transition | Sequence[Transition]:
        """Return one of them, or several."""
        return list(self)[index]

    def changes(self) -> Iterator[Change]:
        """Yield the fields of each."""
        flat = iter(self._flat)
        return zip(flat, flat, flat, flat, strict=True)


class Accepted(Transitions):
    """The first change of many tasks, at one time.

    Attributes:
        tasks: all of them, in order.
        new: the state that they entered.
        at: seconds since the epoch.
    """

    def __init__(self, tasks: Sequence[ComputeTask], new: TaskState, at: float) -> None:
        super().__init__([])
        self.tasks, self.new, self.at = tasks, new, at

    def __len__(self) -> int:
        """Return how many tasks there are."""
        return len(self.tasks)

    def changes(self) -> Iterator[Change]:
        """Yield the fields of each."""
        return zip(self.tasks, repeat(TaskState.NEW), repeat(self.new), repeat(self.at), strict=False)


def changes_of(transitions: Sequence[Transition]) -> Iterator[Change]:
    """Return the fields of each of some transitions, without an object for each where there is none yet."""
    if isinstance(transitions, Transitions):
        return transitions.changes()
    return ((change.task, change.old, change.new, change.at) for change in transitions)
