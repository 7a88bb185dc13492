"""`DaskExecutionBackend`: the hooks. `engine` has the cluster, `flight` what is in its hands."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from distributed import Client
from distributed.deploy.cluster import Cluster
from rhapsody.errors import BackendConfigurationError, BackendStartError, SubmitError, UnsupportedError
from rhapsody.plugin import (
    BackendCapabilities,
    BackendContext,
    Batching,
    CancelResult,
    ComputeTask,
    ExecutionBackend,
    TaskBatch,
    hookimpl,
)

from .engine import HUSH, Engine, cluster_keywords
from .flight import Flight
from .options import ANYWHERE, TASK_OPTIONS, check_cluster_keywords, placement_of, unmet
from .units import Unit


class DaskExecutionBackend(ExecutionBackend):
    """Runs functions and executables on a Dask cluster.

    Args:
        resources: keywords of LocalCluster (`n_workers`, `threads_per_worker`, `memory_limit`, ...) for a cluster on
            this machine, which the backend starts and closes. The default is LocalCluster's own, without a dashboard.
        cluster: a Dask cluster object, or the address of a scheduler ("tcp://host:8786"). It is never closed.
        client: a Dask client, synchronous or asynchronous. It is never closed.
        name: the name under which tasks choose the backend.
        worker_timeout: seconds that work may wait while no worker is there that could run it, before it fails; None
            waits for ever.
        batching: how function tasks are grouped; see `ExecutionBackend`.

    Raises:
        BackendConfigurationError: more than one of `resources`, `cluster` and `client`, or an unusable one.
    """

    interface_version = 1
    capabilities = BackendCapabilities(
        cancel_executables=True,
        batch_executables=True,
        gpus=True,
        options=TASK_OPTIONS,
    )

    def __init__(
        self,
        resources: Mapping[str, Any] | None = None,
        cluster: Cluster | str | None = None,
        client: Client | None = None,
        name: str = "dask",
        *,
        worker_timeout: float | None = 60.0,
        batching: Batching | Mapping[str, Any] | bool | float | None = None,
    ) -> None:
        super().__init__(name, batching=batching)
        given = [word for word, value in (("resources", resources), ("cluster", cluster), ("client", client)) if value]
        if len(given) > 1:
            raise BackendConfigurationError(
                f"{' and '.join(given)} were given to the dask backend; give one: resources start a LocalCluster, "
                f"cluster and client use one that is there"
            )
        if resources is not None and not isinstance(resources, Mapping):
            raise BackendConfigurationError(f"resources must map keywords of LocalCluster, not {resources!r}")
        if cluster is not None and not isinstance(cluster, Cluster | str):
            raise BackendConfigurationError(
                f"cluster must be a Dask cluster or the address of a scheduler, not {cluster!r}"
            )
        if client is not None and not isinstance(client, Client):
            raise BackendConfigurationError(f"client must be a dask.distributed.Client, not {client!r}")
        if worker_timeout is not None and not worker_timeout > 0:
            raise BackendConfigurationError(f"worker_timeout must be above 0 seconds, not {worker_timeout!r}")
        check_cluster_keywords(resources or {}, cluster_keywords())
        self._resources = dict(resources or {})
        self._cluster = cluster
        self._given_client = client
        self._worker_timeout = worker_timeout
        self._engine: Engine | None = None
        self._flight: Flight | None = None
        self._token = ""
        self._numbers = 0
        self._waiting: list[tuple[Unit, bytes]] = []  # on their way to the engine's loop
        self._lock = threading.Lock()

    @property
    def scheduler_address(self) -> str | None:
        """The address of the scheduler while the backend is open, for a client of your own; None otherwise."""
        return self._engine.address if self._engine is not None else None

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        """Start or connect to the cluster."""
        self._token = f"{context.session}-{self.name}-{secrets.token_hex(4)}".replace("/", "_")
        engine = self._engine = Engine(self._resources, self._cluster, self._given_client)
        await engine.run(engine.open)
        flight = Flight(
            engine.client,
            context,
            self._token,
            self._worker_timeout,
            own=engine.owns_cluster,
            adaptive=engine.is_adaptive,
        )
        try:
            told = await engine.run(flight.open)
        except (ImportError, AttributeError) as error:
            raise BackendStartError(
                f"the scheduler at {engine.address} cannot load rhapsody_dask ({error}); install rhapsody-core and "
                f"rhapsody-dask where the scheduler and the workers run"
            ) from error
        self._flight = flight
        for text in told:
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    @hookimpl
    def rhapsody_validate(self, tasks: Sequence[ComputeTask]) -> None:
        """Refuse options that make no sense, and what no worker offers while there are workers."""
        workers = self._flight.workers.known.values() if self._flight is not None else ()
        for task in tasks:
            placement = placement_of(task, self.name)
            if workers and (problem := unmet(placement, workers)):
                raise UnsupportedError(
                    f"task {task.uid}: backend {self.name!r}: {problem}; start workers that have it, or change the task"
                )

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        """Hand one unit to the engine's loop; units of the same moment leave together."""
        engine = self._engine
        assert engine is not None, "submit comes after init"
        placement = placement_of(batch.tasks[0], self.name) if len(batch) == 1 else ANYWHERE
        payload = batch.encode()
        self._numbers += 1
        unit = Unit(
            self._numbers,
            f"rhapsody-{self._token}-{self._numbers}",
            batch,
            placement,
            {task.uid: task for task in batch.tasks},
        )
        with self._lock:
            self._waiting.append((unit, payload))
            is_first = len(self._waiting) == 1
        if is_first:
            try:
                engine.loop.call_soon_threadsafe(self._flush)
            except RuntimeError as error:
                self._waiting.clear()
                raise SubmitError(f"backend {self.name!r}: the event loop of its Dask client is closed") from error

    def _flush(self) -> None:
        """Submit what has gathered. On the engine's loop."""
        with self._lock:
            units, self._waiting = self._waiting, []
        if self._flight is not None:
            self._flight.submit(units)

    @hookimpl
    async def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Keep what waits from running, and stop executables on their workers."""
        assert self._engine is not None
        assert self._flight is not None
        return await self._engine.run(self._flight.cancel, tasks)

    @hookimpl
    async def rhapsody_shutdown(self, wait: bool) -> None:
        """Stop what runs, close what was opened here, end the thread."""
        engine, self._engine = self._engine, None
        flight, self._flight = self._flight, None
        if engine is None or engine.loop.is_closed():
            return
        try:
            if flight is not None:
                await engine.run(flight.close)
        finally:
            with HUSH if engine.owns_cluster else contextlib.nullcontext():
                try:
                    await engine.run(engine.close, wait)
                finally:
                    await asyncio.to_thread(engine.end)
