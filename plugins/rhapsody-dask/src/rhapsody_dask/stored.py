"""Brings large arguments to the workers of a cluster that somebody else has started, as data of Dask's own."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Sequence

from distributed import Client, Future
from rhapsody.plugin import SharedStore, TaskBatch
from rhapsody.worker import StoredBytes

GONE = ("lost", "cancelled", "error")
Scattered = concurrent.futures.Future[Future]


class ScatterStore(SharedStore):
    """Scatters values: each to one worker, from which Dask takes it once to each other that needs it.

    Args:
        client: connected.
        loop: the client's.
        token: names the backend on the cluster.
    """

    def __init__(self, client: Client, loop: asyncio.AbstractEventLoop, token: str) -> None:
        super().__init__()
        self._client = client
        self._loop = loop
        self._token = token
        self._numbers = 0
        self._scattered: dict[str, Scattered] = {}

    def put(self, key: str, parts: Sequence[bytes | memoryview], size: int) -> None:
        """Scatter a value; this returns before it has arrived."""
        self._numbers += 1  # Dask would not take a key again that it has just forgotten
        name = f"rhapsody-{self._token}-stored-{self._numbers}"
        data = StoredBytes.of(key, parts, size)
        self._scattered[key] = asyncio.run_coroutine_threadsafe(self._scatter(name, data), self._loop)

    async def _scatter(self, name: str, data: StoredBytes) -> Future:
        return (await self._client.scatter({name: data}))[name]

    def has(self, key: str) -> bool:
        """Return whether a value is on its way, or is there."""
        found = self._scattered.get(key)
        if found is None or not found.done():
            return found is not None
        return found.exception() is None and found.result().status not in GONE

    def drop(self, key: str) -> None:
        """Let the cluster forget a value."""
        found = self._scattered.pop(key, None)
        if found is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_release, found)

    def needed_by(self, batch: TaskBatch) -> list[Scattered]:
        """Return what a batch needs, on its way or there."""
        return [self._scattered[key] for key in self.keys_of(batch)]


def _release(scattered: Scattered) -> None:
    if not scattered.done():
        scattered.cancel()
    elif scattered.exception() is None:
        scattered.result().release()
