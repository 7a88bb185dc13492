"""The workers of the cluster: who is there, what each offers, and what a dead one had begun. On the engine's loop."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Mapping
from typing import Any, Final

from distributed import Client
from distributed.versions import get_versions
from rhapsody.plugin import BackendContext

from . import on_scheduler, on_worker
from .options import WorkerInfo, mismatches
from .units import capacity_for

ANSWER: Final = 5.0  # seconds within which a worker answers a question


class Workers:
    """Follows the workers, and tells the context how much they take.

    Args:
        client: connected.
        context: of the backend.
        token: names the backend on the cluster.
        own: whether the cluster lives and dies with the backend.
        adaptive: whether the cluster grows when there is work; None if unknown.

    Attributes:
        known: by address. Replaced, never changed: other threads read it.
    """

    def __init__(
        self, client: Client, context: BackendContext, token: str, *, own: bool, adaptive: bool | None
    ) -> None:
        self.known: Mapping[str, WorkerInfo] = {}
        self._client = client
        self._context = context
        self._token = token
        self._own = own
        self._adaptive = adaptive
        self._directories: dict[str, str] = {}  # of workers that were ever seen
        self._names: dict[str, str] = {}  # likewise
        self._shielding: set[asyncio.Task[Any]] = set()

    async def open(self) -> list[str]:
        """Learn of the workers, and from now on of their coming and going. Returns warnings for the user."""
        told = await self._client.run_on_scheduler(on_scheduler.attach, self._token, self._client.id)
        self._set({**{fields["address"]: WorkerInfo(**fields) for fields in told}, **self.known})
        if self._own and self.known:
            await self._client.run(on_worker.ignore_interrupts, os.getpid())
        return [text for worker in self.known.values() for text in self._mismatches(worker)]

    def joined(self, fields: Mapping[str, Any]) -> None:
        """Add a worker."""
        worker = WorkerInfo(**fields)
        self._set({**self.known, worker.address: worker})
        for text in self._mismatches(worker):
            self._context.log.warning("versions_differ", detail=text)
            self._context.loop.call_soon_threadsafe(warnings.warn, text, RuntimeWarning)
        if self._own:
            self._shield(worker.address)

    def left(self, address: str) -> None:
        """Remove a worker."""
        self._set({key: worker for key, worker in self.known.items() if key != address})

    def name_of(self, address: str | None) -> str | None:
        """Return what to call a worker, also one that is gone."""
        return self._names.get(address or "", address)

    async def ledger_of(self, address: str) -> dict[int, bytes] | None:
        """Read the ledger of a worker that is gone: here, or through another worker of its host."""
        directory = self._directories.get(address)
        if not directory:
            return None
        path = str(on_worker.ledger_path(directory, self._token))
        if (here := on_worker.read_ledger(path)) is not None:
            return here
        host = address.rpartition(":")[0]
        for neighbour in [other for other in self.known if other.rpartition(":")[0] == host][:3]:
            try:
                async with asyncio.timeout(ANSWER):
                    answer = await self._client.run(on_worker.read_ledger, path, workers=[neighbour])
            except Exception as error:  # it is as good as not there: nothing is known, and nothing runs twice
                self._context.log.warning("ledger_not_read", worker=address, error=repr(error))
                continue
            if (there := answer.get(neighbour)) is not None:
                return dict(there)
        return None

    async def tidy(self) -> None:
        """Leave nothing on a cluster that lives on."""
        await self._client.run(on_worker.forget, self._token, on_error="ignore")
        await self._client.run_on_scheduler(on_scheduler.detach, self._token, self._client.id)

    def close(self) -> None:
        """Remove the ledgers of this machine: those of workers that are gone, and of a cluster that ends now."""
        for task in self._shielding:
            task.cancel()
        for directory in self._directories.values():
            on_worker.ledger_path(directory, self._token).unlink(missing_ok=True)

    def _set(self, workers: Mapping[str, WorkerInfo]) -> None:
        self.known = workers
        for worker in workers.values():
            self._directories[worker.address] = worker.directory
            self._names[worker.address] = f"{worker.host} ({worker.name})"
        self._context.set_capacity(capacity_for(workers.values(), self._adaptive))

    def _mismatches(self, worker: WorkerInfo) -> list[str]:
        return mismatches(get_versions()["packages"], worker)

    def _shield(self, address: str) -> None:
        run = self._client.run
        task = asyncio.create_task(run(on_worker.ignore_interrupts, os.getpid(), workers=[address], on_error="ignore"))
        self._shielding.add(task)
        task.add_done_callback(self._shielding.discard)
