"""A unit in the scheduler's hands, and what can be said of units without asking anybody. Pure."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import attrs
from distributed import Future
from rhapsody.plugin import Capacity, ComputeTask, TaskBatch

from .on_worker import digest
from .options import Placement, WorkerInfo


@attrs.define(eq=False)
class Unit:
    """A batch in the scheduler's hands.

    Attributes:
        number: counts the units of the backend, from 1.
        key: Dask's.
        batch: what is in it.
        placement: where it may run.
        open: its tasks that have not ended, in order.
        worker: the one that has begun with it, by address.
        future: Dask's.
        watch: follows the future.
        attempt: of its one task, where that may be run again; None for any other unit.
        withdrawals: that are under way.
        starved_since: when it was first seen to fit no worker, by the monotonic clock.
    """

    number: int
    key: str
    batch: TaskBatch
    placement: Placement
    open: dict[str, ComputeTask]
    worker: str | None = None
    future: Future | None = None
    watch: asyncio.Task[None] | None = None
    attempt: int | None = None
    withdrawals: int = 0
    starved_since: float | None = None


def capacity_for(workers: Iterable[WorkerInfo], adaptive: bool | None) -> Capacity:
    """Return how much to keep in the scheduler's hands.

    As many units again as there are slots wait at the workers, where Dask puts them ahead of need, and as many at the
    scheduler; 24 more cover the way of a report to the session and of the next unit back, some 20 ms or, on a busy
    machine, 200. A cluster that grows with the work in its scheduler's queue has to see a queue.
    """
    slots = sum(worker.threads for worker in workers)
    units = 3 * slots + 24
    return Capacity(slots=max(slots, 1), units=units if adaptive is False else max(units, 64))


def split_by_ledger(
    tasks: Sequence[ComputeTask], number: int, ledger: Mapping[int, bytes] | None
) -> tuple[list[ComputeTask], list[ComputeTask]]:
    """Divide a lost unit's tasks into those that may have begun, and those that did not.

    Args:
        tasks: that have not ended, in the order in which they run.
        number: of the unit.
        ledger: of the worker; None if it could not be read, and nothing is known.
    """
    if ledger is None:
        return list(tasks), []
    at = ledger.get(number)
    if at is None or at == bytes(8):
        return [], list(tasks)
    places = [place for place, task in enumerate(tasks) if digest(task.uid) == at]
    if not places:  # the task that it was at has ended; those before it too
        return list(tasks), []
    return list(tasks[: places[0] + 1]), list(tasks[places[0] + 1 :])
