"""`DaskExecutionBackend`: the hooks. `engine` has the cluster, `tracker` the batches that it holds."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs
from distributed import Client, Security
from distributed.deploy.cluster import Cluster
from rhapsody.errors import BackendConfigurationError, BackendStartError, SubmitError, UnsupportedError
from rhapsody.plugin import (
    BackendCapabilities,
    BackendContext,
    Batching,
    CancelResult,
    ComputeTask,
    ExecutionBackend,
    FileStore,
    SharedStore,
    TaskBatch,
    hookimpl,
)

from .batches import HeldBatch
from .clusters import cluster_keywords, queue_request
from .engine import QUIET, Engine
from .options import (
    ANYWHERE,
    OPEN,
    TASK_OPTIONS,
    check_cluster_keywords,
    is_open,
    placement_of,
    runs_one_at_a_time,
    threads_of,
    unmet,
)
from .queues import SYSTEMS, QueueRequest
from .stored import ScatterStore
from .tracker import BatchTracker
from .workers import Workers


class DaskExecutionBackend(ExecutionBackend):
    """Runs functions and executables on a Dask cluster.

    Args:
        resources: keywords of LocalCluster (`n_workers`, `threads_per_worker`, `memory_limit`, ...) for a cluster on
            this machine, which the backend starts and closes. The default is LocalCluster's own, without a dashboard.
            With the name of a batch system: `nodes`, and of each `cores`, `memory`, `queue` and `walltime`; see
            `rhapsody_dask.queues.request_of`. With `threads_per_worker=1` functions can be stopped, as a `timeout`
            asks: their worker process is replaced.
        cluster: a Dask cluster object, or the address of a scheduler ("tcp://host:8786"). It is never closed. Or the
            name of a batch system ("slurm", "pbs", "lsf", "sge", "htcondor", "oar"), whose jobs are the workers.
        client: a Dask client, synchronous or asynchronous. It is never closed.
        name: the name under which tasks choose the backend.
        worker_timeout: seconds that a task may wait without a worker that could run it, before it fails; None
            waits for ever. "auto" is 60, and None for jobs of a batch system.
        security: a `distributed.Security`, for a cluster that the backend starts, or for the address of a scheduler.
            By default a cluster that the backend starts has temporary certificates of its own; False is without.
        lost_after: seconds without an answer from a worker's machine after which it counts as lost; what it had not
            begun then runs elsewhere. It is the kernel that must answer: a worker that computes is not taken for lost.
        batching: how function tasks are grouped; see `ExecutionBackend`, also for `max_in_flight`.

    Raises:
        BackendConfigurationError: more than one of `resources`, `cluster` and `client`, or an unusable one.
    """

    interface_version = 1
    capabilities = BackendCapabilities(
        cancel_executables=True,
        batch_executables=True,
        gpus=True,
        cores_per_rank=True,
        memory=True,
        shared_data=True,
        keep_results=True,
        options=TASK_OPTIONS,
    )

    def __init__(
        self,
        resources: Mapping[str, Any] | None = None,
        cluster: Cluster | str | None = None,
        client: Client | None = None,
        name: str = "dask",
        *,
        worker_timeout: float | Literal["auto"] | None = "auto",
        security: Security | bool | None = None,
        lost_after: float = 20.0,
        batching: Batching | Mapping[str, Any] | bool | float | None = None,
        max_in_flight: int | None = None,
    ) -> None:
        super().__init__(name, batching=batching, max_in_flight=max_in_flight)
        system = cluster if isinstance(cluster, str) and cluster in SYSTEMS else None
        named = None if system else cluster
        given = [key for key, value in (("resources", resources), ("cluster", named), ("client", client)) if value]
        if system and client:
            given = ["cluster", "client"]
        if len(given) > 1:
            raise BackendConfigurationError(
                f"{' and '.join(given)} were given to the dask backend; give one: resources start a LocalCluster, "
                f"cluster and client use a running one"
            )
        if resources is not None and not isinstance(resources, Mapping):
            raise BackendConfigurationError(f"resources must map keywords of LocalCluster, not {resources!r}")
        if cluster is not None and not isinstance(cluster, Cluster | str):
            raise BackendConfigurationError(
                f"cluster must be a Dask cluster or the address of a scheduler, not {cluster!r}"
            )
        if client is not None and not isinstance(client, Client):
            raise BackendConfigurationError(f"client must be a dask.distributed.Client, not {client!r}")
        if worker_timeout == "auto":
            worker_timeout = None if system else 60.0
        if worker_timeout is not None and not (isinstance(worker_timeout, int | float) and worker_timeout > 0):
            raise BackendConfigurationError(f"worker_timeout must be above 0 seconds, not {worker_timeout!r}")
        if not (isinstance(lost_after, int | float) and lost_after >= 1):
            raise BackendConfigurationError(f"lost_after must be at least 1 second, not {lost_after!r}")
        _check_security(security, cluster is None or system is not None, client or named)
        self._resources = dict(resources or {})
        self._cluster: Cluster | QueueRequest | str | None = cluster
        if system:
            self._cluster = queue_request(system, self._resources)
        else:
            check_cluster_keywords(self._resources, cluster_keywords())
        if cluster is None and client is None and runs_one_at_a_time(self._resources):
            self.capabilities = attrs.evolve(self.capabilities, cancel_functions=True)
        self._given_client = client
        self._worker_timeout = worker_timeout
        self._security = security
        self._lost_after = lost_after
        self._engine: Engine | None = None
        self._tracker: BatchTracker | None = None
        self._store: SharedStore | None = None
        self._token = ""
        self._numbers = 0
        self._waiting: list[tuple[HeldBatch, bytes]] = []  # submitted, and not yet handed over on the engine's loop
        self._lock = threading.Lock()

    @property
    def scheduler_address(self) -> str | None:
        """The address of the scheduler while the backend is open, for a client of your own; None otherwise."""
        return self._engine.address if self._engine is not None else None

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        """Start or connect to the cluster."""
        self._token = f"{context.session}-{self.name}-{secrets.token_hex(4)}".replace("/", "_")
        engine = self._engine = Engine(
            self._resources, self._cluster, self._given_client, self._security, lambda: context.sandbox
        )
        await engine.run(engine.open)
        own = engine.owns_cluster
        where = engine.client, context, self._token
        workers = Workers(*where, own=own, adaptive=engine.is_adaptive, lost_after=self._lost_after)
        tracker = BatchTracker(*where, workers, self._worker_timeout, own=own)
        try:
            differences = await engine.run(tracker.open)
        except (ImportError, AttributeError) as error:
            raise BackendStartError(
                f"the scheduler at {engine.address} cannot load rhapsody_dask ({error}); install rhapsody-core and "
                f"rhapsody-dask where the scheduler and the workers run"
            ) from error
        tracker.workers.may_be_ended = self.capabilities.cancel_functions
        self._tracker = tracker
        if engine.owns_cluster:
            context.warn_of_one_node(
                "to use all, start `dask scheduler` here and `srun dask worker ADDRESS`, and give cluster=ADDRESS"
            )
        if is_open(engine.address):
            context.warn("scheduler_is_open", OPEN.format(backend=self.name, address=engine.address))
        is_here = engine.is_on_this_machine
        context.store = FileStore() if is_here else ScatterStore(engine.client, engine.loop, self._token)
        self._store = context.store
        for text in differences:
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    @hookimpl
    def rhapsody_validate(self, tasks: Sequence[ComputeTask]) -> None:
        """Refuse invalid options, and what no worker offers while there are workers."""
        workers = self._tracker.workers.known.values() if self._tracker is not None else ()
        for task in tasks:
            placement = placement_of(task, self.name)
            if task.keep and placement.retries:
                raise UnsupportedError(
                    f"task {task.uid}: backend {self.name!r} keeps no result of a task with its option 'retries': what "
                    f"is lost would be made anew unseen; give retries= to the task instead"
                )
            if self._engine is not None and self._engine.is_adaptive:  # a worker that has them may come
                placement = attrs.evolve(placement, resources=())
            if workers and (problem := unmet(placement, workers)):
                raise UnsupportedError(
                    f"task {task.uid}: backend {self.name!r}: {problem}; start workers that have it, or change the task"
                )

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        """Hand one batch to the engine's loop; batches of the same moment leave together."""
        engine = self._engine
        assert engine is not None, "submit comes after init"
        placement = placement_of(batch.tasks[0], self.name) if len(batch) == 1 else ANYWHERE
        payload = batch.encode(threads_of(batch.tasks[0]))
        self._numbers += 1
        held = HeldBatch(
            self._numbers,
            f"rhapsody-{self._token}-{self._numbers}",
            batch,
            placement,
            {task.uid: task for task in batch.tasks},
        )
        if isinstance(self._store, ScatterStore):
            held.stored = self._store.needed_by(batch)
        if (policies := batch.tasks[0].policies) is not None:
            held.keeps, held.takes = policies.keep, policies.takes
        with self._lock:
            self._waiting.append((held, payload))
            is_first = len(self._waiting) == 1
        if is_first:
            try:
                engine.loop.call_soon_threadsafe(self._flush)
            except RuntimeError as error:
                self._waiting.clear()
                raise SubmitError(f"backend {self.name!r}: the event loop of its Dask client is closed") from error

    def _flush(self) -> None:
        """Submit the batches that wait. On the engine's loop."""
        with self._lock:
            batches, self._waiting = self._waiting, []
        if self._tracker is not None:
            self._tracker.submit(batches)

    @hookimpl
    async def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Keep what waits from running, and stop executables on their workers."""
        assert self._engine is not None
        assert self._tracker is not None
        return await self._engine.run(self._tracker.cancel, tasks)

    @hookimpl
    async def rhapsody_withdraw(self, tasks: Sequence[ComputeTask]) -> None:
        """Take back what waits in batches behind a long task."""
        assert self._engine is not None
        assert self._tracker is not None
        await self._engine.run(self._tracker.give_back, tasks)

    @hookimpl
    def rhapsody_explain(self, task: ComputeTask) -> str | None:
        """Say what no worker has that a task asks for."""
        known = () if self._tracker is None else self._tracker.workers.known.values()
        problem = unmet(placement_of(task, self.name), known)
        return None if problem is None else f"for the cluster to grow: {problem}"

    @hookimpl
    async def rhapsody_shutdown(self, wait: bool) -> None:
        """Stop what runs, close what was opened here, end the thread."""
        engine, self._engine = self._engine, None
        tracker, self._tracker = self._tracker, None
        if engine is None or engine.loop.is_closed():
            return
        try:
            if tracker is not None:
                await engine.run(tracker.close)
        finally:
            with QUIET if engine.owns_cluster else contextlib.nullcontext():
                try:
                    await engine.run(engine.close, wait)
                finally:
                    await asyncio.to_thread(engine.end)


def _check_security(security: Security | bool | None, starts: bool, given: Client | Cluster | str | None) -> None:
    """Refuse what cannot be done for the connections of the cluster that was given, or that the backend starts."""
    if security is None or (isinstance(security, Security) and isinstance(given, str | None)):
        return
    if not isinstance(security, Security | bool):
        raise BackendConfigurationError(f"security must be a distributed.Security, True or False, not {security!r}")
    if not starts:
        raise BackendConfigurationError(
            "security= of the dask backend is for a cluster that it starts, and as a distributed.Security for the "
            "address of a scheduler; a cluster or client that is given has its own"
        )
