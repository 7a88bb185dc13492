"""A batch that the scheduler holds, and what follows from it without a message. Pure."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import attrs
from distributed import Future
from rhapsody.plugin import Capacity, ComputeTask, KeptResult, TaskBatch

from .options import Placement, WorkerInfo, unmet
from .stored import Scattered


@attrs.define(eq=False)
class HeldBatch:
    """A batch that the scheduler holds.

    Attributes:
        number: counts the batches of the backend, from 1.
        key: Dask's.
        batch: the batch itself.
        placement: where it may run.
        open: its tasks that have not ended, in order.
        worker: address of the worker that has begun it.
        future: Dask's.
        watch: follows the future.
        attempt: of its one task, where that may be run again; None for any other batch.
        has_more: whether it has ended, and frames that were too large for a report are its result.
        stopping: uids of its executables that were asked to stop.
        withdrawals: how many are in progress.
        stored: large values that it needs, on their way to the cluster or there.
        takes: results that it needs, kept on the cluster.
        keeps: whether its one task has its result kept.
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
    has_more: bool = False
    stopping: set[str] = attrs.field(factory=set)
    withdrawals: int = 0
    stored: Sequence[Scattered] = ()
    takes: Sequence[KeptResult] = ()
    keeps: bool = False
    starved_since: float | None = None

    def starved(self, workers: Collection[WorkerInfo], timeout: float | None) -> str | None:
        """Return why no worker can run it, once that has been so for `timeout` seconds; None for never."""
        problem = unmet(self.placement, workers) if self.worker is None else None
        if problem is None:
            self.starved_since = None
            return None
        now = time.monotonic()
        self.starved_since = self.starved_since or now
        return None if timeout is None or now - self.starved_since < timeout else problem


def messages_of(
    batches: Iterable[tuple[HeldBatch, bytes]], most: int
) -> Iterator[tuple[Placement, list[tuple[HeldBatch, bytes]]]]:
    """Group batches and their payloads by placement, into messages of at most `most` bytes or one batch.

    One that needs stored values is a message of its own.
    """
    groups: dict[tuple[Placement, int], list[tuple[HeldBatch, bytes]]] = defaultdict(list)
    for held, payload in batches:
        groups[held.placement, held.number if held.stored or held.takes else 0].append((held, payload))
    for (placement, _), group in groups.items():
        message: list[tuple[HeldBatch, bytes]] = []
        size = 0
        for held, payload in group:
            if message and size + len(payload) > most:
                yield placement, message
                message, size = [], 0
            message.append((held, payload))
            size += len(payload)
        yield placement, message


def capacity_for(workers: Iterable[WorkerInfo], adaptive: bool | None) -> Capacity:
    """Return how much the scheduler is to hold.

    Besides the running batches, as many as there are slots wait at the workers, where Dask sends them ahead of need,
    and as many at the scheduler; 24 more cover the round trip of a report and of the next batch, some 20 ms or, on a
    busy machine, 200. An adaptive cluster grows with its scheduler's queue, so that one must not be empty.
    """
    slots = sum(worker.threads for worker in workers)
    units = 3 * slots + 24
    return Capacity(slots=max(slots, 1), units=units if adaptive is False else max(units, 64))


def begun_of(tasks: Sequence[ComputeTask], number: int, progress: Mapping[int, int] | None) -> set[str] | None:
    """Return the tasks of a lost batch that may have begun; None if nothing is known.

    Args:
        tasks: of the batch, in the order in which they run.
        number: of the batch.
        progress: of the worker, as `read_progress` returns it.
    """
    return None if progress is None else {task.uid for task in tasks[: progress.get(number, 0)]}
