"""Which task goes next where tasks share cores, GPUs and memory: the oldest first, no hole empty, nobody starved.

The oldest waiting task goes as soon as it has room. While it has none, a reservation is made for it: the moment at
which it will have room, by when the running tasks are expected to end, and what will be spare beside it then. A
younger task may go before it if it is expected to have ended by that moment, or if it takes only what is spare. So
the oldest one starts when those that it waits for have ended, or one task's length later where a length was guessed
too short. (This is the backfilling of batch systems, with lengths that are learned and not asked for. A task whose
length is unknown takes what is spare; one that has run longer than expected is expected to end now, so nothing
overtakes on its account.)

Only the first task of each queue is tried, so a decision costs the same whatever waits.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Hashable
from math import inf
from operator import attrgetter
from typing import Final

import attrs

from rhapsody.model.room import Need, Room
from rhapsody.model.task import ComputeTask
from rhapsody.scheduling.backlog import Backlog, Queue
from rhapsody.seam.capacity import Capacity

_ends: Final = attrgetter("ends")


@attrs.define(eq=False)
class Grant:
    """What one running task, or batch, was given.

    Attributes:
        need: what it takes.
        gpus: the numbers of its GPUs.
        ends: when it is expected to end; infinite where that is unknown.
    """

    need: Need
    gpus: tuple[int, ...]
    ends: float


@attrs.define(eq=False)
class Choice:
    """What goes next.

    Attributes:
        queue: whose first task goes.
        need: what each of its tasks takes.
        gpus: the numbers of the GPUs for the task.
        limit: how many of its tasks may go in one batch.
        length: seconds that each is expected to take; None where that is unknown.
    """

    queue: Queue
    need: Need
    gpus: tuple[int, ...]
    limit: int | None
    length: float | None


@attrs.define(eq=False)
class _Reservation:
    """What is kept for the oldest task: when it will have room, and what is spare beside it from then on."""

    head: ComputeTask
    at: float
    spare: Room


class Placement:
    """What runs, what is free, and which task goes next.

    Args:
        capacity: of the engine, with cores.
        length_of: returns the seconds that a task is expected to take; None where that is unknown.

    Attributes:
        grants: of what runs, by the uid of a task, or the number of a batch.
        unmet: queues that `choose` came upon, and whose tasks the engine could never run.
    """

    def __init__(self, capacity: Capacity, length_of: Callable[[ComputeTask], float | None]) -> None:
        self.grants: dict[Hashable, Grant] = {}
        self.unmet: list[Queue] = []
        self._length_of = length_of
        self._by_end: list[Grant] = []
        self._reservation: _Reservation | None = None
        # Queues whose first task had no room, until anything ends; or none beside a reservation, as long as it holds.
        self._passed: dict[Queue, _Reservation | None] = {}
        self._others = 0  # of the latest choice
        self.resize(capacity)

    def resize(self, capacity: Capacity) -> None:
        """The engine has grown or shrunk."""
        self._serial = capacity.tasks is None
        self._whole = capacity.room()
        self._free = self._whole.copy()
        for grant in self._by_end:
            self._free.minus(grant.need, grant.gpus)
        self._reservation = None
        self._passed.clear()

    def choose(self, backlog: Backlog, now: float, others: int) -> Choice | None:
        """Return what goes next; None while nothing that may go has room.

        Args:
            backlog: what waits.
            now: seconds, of any steady clock.
            others: tasks that run and have no grant; each has a slot and a core.
        """
        free = self._free
        if others:
            free = free.copy()
            free.slots -= others
            free.cores -= others
        self.unmet.clear()
        whole, free_cores, passed = self._whole, free.cores, self._passed
        if others < self._others:
            passed.clear()
        self._others = others
        kept: _Reservation | None = None
        for queue in backlog.heads():
            if queue in passed:
                before = passed[queue]
                if (before is None and kept is not None) or (before is not None and before is kept):
                    continue
            known = queue.need
            if known is None or known[0] is not whole:
                known = queue.need = self._need(queue)
            need = known[1]
            if need is None:
                self.unmet.append(queue)
                continue
            # In this order, since GPUs take the longest to find, and this is what a decision costs.
            if need.cores > free_cores or need.slots > free.slots or need.memory > free.memory:
                passed[queue] = None
                if kept is None:
                    kept = self._reserve(queue.head, need, free, others, now)
                continue
            room, until = free, inf
            if kept is not None:
                length = self._length_of(queue.head)
                if length is not None and now + length <= kept.at:
                    until = kept.at
                else:
                    room = kept.spare
                    if need.cores > room.cores or need.slots > room.slots or need.memory > room.memory:
                        passed[queue] = kept
                        continue
                    if need.gpus or queue.resources is None:
                        room = free.common(room)
            gpus = room.gpus_for(need) if need.gpus else ()
            if gpus is not None:
                return self._choice(queue, need, gpus, room, until, now)
            passed[queue] = kept
            if kept is None:
                kept = self._reserve(queue.head, need, free, others, now)
        return None

    def begin(self, key: Hashable, need: Need, gpus: tuple[int, ...], now: float, length: float | None) -> None:
        """A task or batch goes to the engine."""
        grant = self.grants[key] = Grant(need, gpus, inf if length is None else now + length)
        insort(self._by_end, grant, key=_ends)
        self._free.minus(need, gpus)
        kept = self._reservation
        if kept is not None and grant.ends > kept.at:
            kept.spare.minus(need, gpus)

    def end(self, key: Hashable) -> None:
        """A task or batch has ended, or came back."""
        self._passed.clear()
        grant = self.grants.pop(key, None)
        if grant is not None:
            self._by_end.remove(grant)
            self._free.plus(grant.need, grant.gpus)
            self._reservation = None

    def _choice(self, queue: Queue, need: Need, gpus: tuple[int, ...], room: Room, until: float, now: float) -> Choice:
        head = queue.head
        length = self._length_of(head)
        limit: int | None = 1
        if queue.resources is None:
            if not self._serial:
                limit = min(room.slots, room.cores)
            elif until == inf:
                limit = None
            elif length:
                limit = max(1, int((until - now) / length))
        if self._reservation is not None and self._reservation.head is head:
            self._reservation = None
        return Choice(queue, need, gpus, limit, length)

    def _reserve(self, head: ComputeTask, need: Need, free: Room, others: int, now: float) -> _Reservation:
        """Keep room for the oldest task."""
        kept = self._reservation
        if kept is not None and kept.head is head:
            return kept
        room, at = free.copy(), inf
        slots, cores, memory = room.slots, room.cores, room.memory
        gpus: tuple[int, ...] | None = None
        for grant in self._by_end:  # by hand, since there are many, and this is done after each end
            slots += grant.need.slots
            cores += grant.need.cores
            memory += grant.need.memory
            if grant.gpus:
                room.free_gpus(grant.need, grant.gpus)
            if need.cores <= cores and need.slots <= slots and need.memory <= memory:
                gpus = room.gpus_for(need) if need.gpus else ()
                if gpus is not None:
                    at = max(now, grant.ends)
                    break
        else:  # it needs also what the others take
            slots += others
            cores += others
            gpus = room.gpus_for(need) if need.gpus else ()
        room.slots, room.cores, room.memory = slots, cores, memory
        room.minus(need, gpus or ())
        self._reservation = _Reservation(head, at, room)
        return self._reservation

    def _need(self, queue: Queue) -> tuple[Room, Need | None]:
        """Return what a task of a queue takes of the machine; None if there is no room for it while nothing runs."""
        need = Need.of(queue.resources, self._whole)
        return self._whole, need if self._whole.fits(need) is not None else None
