"""How much an engine runs at the same time."""

from __future__ import annotations

import math

import attrs

from rhapsody.errors import InvalidBackendError, describe
from rhapsody.model.resources import Resources, in_words
from rhapsody.model.room import Need, Room


def _check_slots(_: Capacity, field: attrs.Attribute[int], value: object) -> None:
    if type(value) is not int or value < 0:
        raise InvalidBackendError(f"Capacity takes a whole number of {field.name}, 0 or more, not {describe(value)}")


def _check_count(_: Capacity, field: attrs.Attribute[int | None], value: object) -> None:
    if value is not None and (type(value) is not int or value < 0):
        raise InvalidBackendError(f"Capacity takes a whole number of {field.name}, 0 or more, not {describe(value)}")


@attrs.frozen
class Capacity:
    """How much an engine runs, and how much it may hold at a time.

    Where `cores` is given, core packs the tasks: it hands one over when the engine has room for its `Resources`, and
    says in `TaskBatch.gpus` which GPUs are the task's. A task without resources takes one slot and one core.

    Attributes:
        slots: tasks that run at the same time.
        `units`: batches in flight; None for no limit of its own. More than `slots` keeps a spare ready at the engine.
        tasks: tasks in flight, of an engine that runs those of a batch side by side; None for no limit of its own.
        cores: processor cores that running tasks share; None where the engine places tasks by itself.
        gpus: GPUs that they share.
        memory: bytes that they share; None where memory is not counted.
        may_grow: a task that is too large now waits for the engine to grow, and is not refused.

    `Capacity(0)` is an engine that takes nothing at present: tasks wait until it says otherwise.

    Raises:
        InvalidBackendError: what is no count.
    """

    slots: int = attrs.field(validator=_check_slots)
    units: int | None = attrs.field(default=None, validator=_check_count)
    tasks: int | None = attrs.field(default=None, validator=_check_count)
    cores: int | None = attrs.field(default=None, kw_only=True, validator=_check_count)
    gpus: int = attrs.field(default=0, kw_only=True, validator=_check_slots)
    memory: int | None = attrs.field(default=None, kw_only=True, validator=_check_count)
    may_grow: bool = attrs.field(default=False, kw_only=True)

    def room(self) -> Room:
        """Return what is free while nothing runs, of an engine whose tasks core packs."""
        assert self.cores is not None
        memory = math.inf if self.memory is None else self.memory
        return Room(self.slots, self.cores, memory, [1.0] * self.gpus)

    def lacks(self, resources: Resources) -> str | None:
        """Say why no task of these resources can ever run; None if one can, also where core does not pack."""
        return None if self.may_grow else self.lacks_now(resources)

    def lacks_now(self, resources: Resources) -> str | None:
        """Say why no task of these resources can run on an engine of this size; likewise."""
        if self.cores is None:
            return None
        room = attrs.evolve(self, slots=max(1, self.slots)).room()  # one that takes nothing at present will again
        if room.fits(Need.of(resources, room)) is not None:
            return None
        wanted = in_words(resources.cores, resources.gpus, resources.memory)
        largest = in_words(self.cores, self.gpus, self.memory)
        if resources.ranks > 1 and 0 < resources.gpus_per_rank < 1:
            wanted += f" (shares of {resources.gpus_per_rank:g} for {resources.ranks} ranks)"
        when = "run now" if self.may_grow else "ever run"
        no_gpu = "" if self.gpus or not resources.gpus else " and no GPU"
        return f"it needs {wanted}, and the largest task that could {when} has {largest}{no_gpu}"


@attrs.define(eq=False)
class CapacityChanged:
    """The engine grew or shrank.

    Attributes:
        capacity: what holds from now on.
    """

    capacity: Capacity
