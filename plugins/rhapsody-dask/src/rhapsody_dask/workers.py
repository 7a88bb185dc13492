"""The workers of the cluster: what each offers, and what a lost one had begun. On the engine's loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterable, Mapping
from importlib.metadata import version
from typing import Any, Final

import attrs
from distributed import Client
from distributed.versions import get_versions
from rhapsody.plugin import BackendContext

from . import on_scheduler, on_worker, records
from .batches import capacity_for
from .options import WorkerInfo, mismatches

ANSWER: Final = 5.0  # seconds that a worker has to answer a request
_CORE: Final = "rhapsody-core"


class Workers:
    """Follows the workers, and sets the backend's capacity accordingly.

    Args:
        client: connected.
        context: of the backend.
        token: names the backend on the cluster.
        own: whether the backend started the cluster, and closes it.
        adaptive: whether the cluster grows when there is work; None if unknown.
        lost_after: seconds without an answer after which a worker's machine counts as lost.

    Attributes:
        known: by address. Replaced, never changed: other threads read it.
        may_be_ended: whether one may be ended with the function that it runs.
    """

    def __init__(
        self,
        client: Client,
        context: BackendContext,
        token: str,
        *,
        own: bool,
        adaptive: bool | None,
        lost_after: float,
    ) -> None:
        self.known: Mapping[str, WorkerInfo] = {}
        self.may_be_ended = False
        self._client = client
        self._context = context
        self._token = token
        self._own = own
        self._adaptive = adaptive
        self._lost_after = lost_after
        self._directories: dict[str, str] = {}  # of workers that were ever seen
        self._names: dict[str, str] = {}  # likewise
        self._machines: dict[str, str] = {}  # likewise, of those that have said
        self._background: set[asyncio.Task[Any]] = set()

    async def open(self) -> list[str]:
        """Read which workers there are, and follow them from now on. Returns warnings for the user."""
        workers = await self._client.run_on_scheduler(
            on_scheduler.attach, self._token, self._client.id, self._lost_after
        )
        self._set({**{fields["address"]: WorkerInfo(**fields) for fields in workers}, **self.known})
        if self._own and self.known:
            await self._client.run(on_worker.belong_to, os.getpid())
        return await self._compare(self.known.values())

    def joined(self, fields: Mapping[str, Any]) -> None:
        """Add a worker."""
        worker = WorkerInfo(**fields)
        self._set({**self.known, worker.address: worker})
        self._do(self._warn(worker))
        if self._own:
            where = {"workers": [worker.address], "on_error": "ignore"}
            self._do(self._client.run(on_worker.belong_to, os.getpid(), **where))

    def left(self, address: str) -> None:
        """Remove a worker."""
        self._set({key: worker for key, worker in self.known.items() if key != address})

    def name_of(self, address: str | None) -> str | None:
        """Return the name of a worker, also of one that is gone."""
        return self._names.get(address or "", address)

    def why_lost(self, address: str | None) -> str:
        """Return what became of a task that a worker held which is gone, for the message of its error."""
        return (
            f"Dask worker {self.name_of(address) or '(unknown)'} was lost while it held the task (killed, out of "
            "memory, or removed from the cluster); it is not run again, as backend_options={'retries': 1} would allow"
        )

    async def record_of(self, address: str | None, number: int) -> tuple[dict[int, int] | None, bytes]:
        """Read the record of a worker that is gone: here, through another of its host, or from the scheduler."""
        directory = self._directories.get(address or "")
        if not address or not directory:
            return None, b""
        if (here := records.read_record(directory, self._token, number))[0] is not None:
            return here
        host = address.rpartition(":")[0]
        asked_before = self._is_elsewhere(address)
        neighbours = [other for other in self.known if other.rpartition(":")[0] == host]
        for neighbour in neighbours[: 1 if asked_before else 3]:  # the whole machine may be gone
            try:
                async with asyncio.timeout(ANSWER):
                    answer = await self._client.run(
                        records.read_record, directory, self._token, number, workers=[neighbour]
                    )
            except Exception as error:  # the record counts as lost: nothing is known, and nothing runs twice
                self._context.log.warning("progress_not_read", worker=address, error=repr(error))
                continue
            there: tuple[dict[int, int] | None, bytes] = answer.get(neighbour, (None, b""))
            if there[0] is not None:
                return there
        return (await self._begun(address, number) if asked_before else None), b""

    def _is_elsewhere(self, address: str) -> bool:
        """Whether a worker is on another machine; one that was lost before it could say so, by its address."""
        if (machine := self._machines.get(address)) is not None:
            return machine != records.machine()
        host = address.partition("://")[2].rpartition(":")[0].strip("[]")
        return not address.startswith("inproc") and not records.is_ours(host)

    async def _begun(self, address: str, number: int) -> dict[int, int] | None:
        """Ask the scheduler what a worker of another machine may have begun; see `allowance`."""
        try:
            async with asyncio.timeout(ANSWER):
                return {number: await self._client.run_on_scheduler(on_scheduler.begun, self._token, address, number)}
        except Exception as error:
            self._context.log.warning("begun_not_read", worker=address, error=repr(error))
            return None

    async def tidy(self) -> None:
        """Remove what the backend left on the user's cluster."""
        await self._client.run(on_worker.forget, self._token, on_error="ignore")
        await self._client.run_on_scheduler(on_scheduler.detach, self._token, self._client.id)

    def close(self) -> None:
        """Remove the records of this machine: those of workers that are gone, and of a cluster that ends now."""
        for task in self._background:
            task.cancel()
        for directory in self._directories.values():
            records.progress_path(directory, self._token).unlink(missing_ok=True)
            records.frames_path(directory, self._token).unlink(missing_ok=True)

    def _set(self, workers: Mapping[str, WorkerInfo]) -> None:
        self.known = workers
        for worker in workers.values():
            self._directories[worker.address] = worker.directory
            self._names.setdefault(worker.address, f"{worker.host} ({worker.name})")
        self._context.set_capacity(capacity_for(workers.values(), self._adaptive))

    async def _warn(self, worker: WorkerInfo) -> None:
        for text in await self._compare([worker]):
            self._context.warn("versions_differ", text)

    async def _compare(self, workers: Iterable[WorkerInfo]) -> list[str]:
        """Name the versions that differ between here and these workers; those of our own share our installation."""
        compared = workers if self._own else await self._with_core(list(workers))
        ours = {**get_versions()["packages"], _CORE: version(_CORE)}
        return [text for worker in compared for text in mismatches(ours, worker)]

    async def _with_core(self, workers: list[WorkerInfo]) -> list[WorkerInfo]:
        """Add the version of rhapsody-core, which Dask itself does not compare, to what is known of workers."""
        answer: Mapping[str, object] = {}
        try:
            async with asyncio.timeout(ANSWER):  # `version` is a function of the standard library, which any worker has
                addresses = [worker.address for worker in workers]
                answers = await asyncio.gather(
                    self._client.run(version, _CORE, workers=addresses, on_error="return"),
                    self._client.run(records.machine, workers=addresses, on_error="ignore"),
                )
                answer = answers[0]
                self._machines.update(answers[1])
        except Exception as error:  # one that does not answer: the versions that Dask knows are compared all the same
            self._context.log.warning("versions_not_read", error=repr(error))
        for worker in workers:
            host = self._machines.get(worker.address, worker.host).partition(" ")[0]
            self._names[worker.address] = f"{host} ({worker.name})"
        cores = {address: core for address, core in answer.items() if isinstance(core, str)}
        return [
            attrs.evolve(worker, packages={**worker.packages, _CORE: cores.get(worker.address)}) for worker in workers
        ]

    def _do(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
