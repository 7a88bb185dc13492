"""Hands batches to the scheduler: one message for many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import dask.config
from distributed import Client, Future

from . import on_worker
from .batches import HeldBatch
from .options import GPU, Placement, WorkerInfo
from .records import machine

LARGE: Final = 8 * 2**20  # bytes of batches submitted together; a larger single one is sent without Dask's warning


def send_batches(
    client: Client,
    token: str,
    placement: Placement,
    workers: Iterable[WorkerInfo],
    part: Sequence[tuple[HeldBatch, bytes]],
    stored: Sequence[Future],
) -> list[Future]:
    """Hand batches and their payloads to the scheduler.

    Args:
        client: connected.
        token: names the backend on the cluster.
        placement: of all of them.
        workers: that there are.
        part: the batches.
        stored: large values that they need.
    """
    quiet = sum(len(payload) for _, payload in part) > LARGE
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"} if quiet else {}):
        futures: list[Future] = client.map(
            on_worker.run_batch,
            [payload for _, payload in part],
            [held.number for held, _ in part],
            token=token,
            again=placement.retries,
            need=(placement.cores, placement.memory, dict(placement.resources).get(GPU, 0)),
            home=machine(),
            key=[held.key for held, _ in part],
            **({"stored": list(stored)} if stored else {}),
            **placement.keywords(workers),
        )
    return futures
