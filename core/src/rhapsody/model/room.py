"""The arithmetic of resources: what a task needs, and what is free of a machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Self

import attrs

from rhapsody.model.resources import Resources

_TINY: Final = 1e-9  # of a GPU: three thirds are a whole one
_ONE_CORE: Final = Resources()


@attrs.frozen
class Need:
    """What one task takes while it runs.

    Attributes:
        slots: tasks that could run in its stead.
        cores: of all its ranks.
        memory: bytes.
        ranks: processes.
        gpus: for each rank; a fraction below 1 is a share of one.
    """

    slots: int
    cores: int
    memory: int
    ranks: int
    gpus: float

    @classmethod
    def of(cls, resources: Resources | None, whole: Room) -> Self:
        """Return what a task takes of a machine that is `whole` when nothing runs; without resources, one core."""
        if resources is None:
            resources = _ONE_CORE
        slots, cores = (whole.slots, max(whole.cores, resources.cores)) if resources.exclusive else (1, resources.cores)
        return cls(slots, cores, resources.memory or 0, resources.ranks, resources.gpus_per_rank)


@attrs.define
class Room:
    """What is free: of a machine, or of all the machines of an engine together.

    Attributes:
        slots: tasks.
        cores: processor cores.
        memory: bytes; infinite where it is not counted.
        gpus: the free share of each GPU, by number; 1 is the whole of it.
    """

    slots: int
    cores: int
    memory: float
    gpus: list[float]

    def copy(self) -> Room:
        """Return another of the same size."""
        return Room(self.slots, self.cores, self.memory, list(self.gpus))

    def fits(self, need: Need) -> tuple[int, ...] | None:
        """Return the numbers of the GPUs that a task would get, those of each rank together; None if it has no room.

        Shares are taken of the GPU that has the least left, so that whole ones stay whole.
        """
        if need.cores > self.cores or need.slots > self.slots or need.memory > self.memory:
            return None
        return self.gpus_for(need) if need.gpus else ()

    def gpus_for(self, need: Need) -> tuple[int, ...] | None:
        """Return the numbers of the GPUs that a task would get, as `fits` does, of one that asks for GPUs."""
        return _choose(self.gpus, need.ranks, need.gpus)

    def minus(self, need: Need, gpus: Sequence[int]) -> None:
        """Take away what a task needs, with these GPUs."""
        self.slots -= need.slots
        self.cores -= need.cores
        self.memory -= need.memory
        if gpus:
            share = min(need.gpus, 1)
            for gpu in gpus:
                if gpu < len(self.gpus):  # else the engine has shrunk
                    self.gpus[gpu] -= share

    def plus(self, need: Need, gpus: Sequence[int]) -> None:
        """Give back what a task took."""
        self.slots += need.slots
        self.cores += need.cores
        self.memory += need.memory
        if gpus:
            self.free_gpus(need, gpus)

    def free_gpus(self, need: Need, gpus: Sequence[int]) -> None:
        """Give back the GPUs that a task took."""
        share = min(need.gpus, 1)
        for gpu in gpus:
            if gpu < len(self.gpus):
                self.gpus[gpu] += share

    def common(self, other: Room) -> Room:
        """Return what is free in both."""
        gpus = [min(pair) for pair in zip(self.gpus, other.gpus, strict=True)]
        return Room(min(self.slots, other.slots), min(self.cores, other.cores), min(self.memory, other.memory), gpus)


def _choose(free: Sequence[float], ranks: int, each: float) -> tuple[int, ...] | None:
    if each >= 1:
        count = ranks * int(each)
        idle = [gpu for gpu, share in enumerate(free) if share > 1 - _TINY]
        return tuple(idle[:count]) if len(idle) >= count else None
    left = list(free)
    chosen = []
    for _ in range(ranks):
        wide = [gpu for gpu, share in enumerate(left) if share > each - _TINY]
        if not wide:
            return None
        gpu = min(wide, key=left.__getitem__)
        left[gpu] -= each
        chosen.append(gpu)
    return tuple(chosen)
