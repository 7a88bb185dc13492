"""`dragon_v2`: a persistent group of Dragon worker processes, for small functions at low latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rhapsody.plugin import (
    BackendCapabilities,
    BackendContext,
    CancelResult,
    Capacity,
    ComputeTask,
    TaskBatch,
    hookimpl,
)

from .backend import DragonBackend, node_policies, read_resources
from .pool import WORKERS, WorkerGroup
from .runtime import DragonRuntime


class DragonExecutionBackendV2(DragonBackend):
    """Runs tasks on a group of Dragon worker processes that live as long as the session.

    The workers are fed and drained through Dragon queues; a no-op function costs about 0.02 ms among many, which share
    units, and 0.3 to 1.7 ms alone. A worker that dies fails the task that it ran and is replaced. V3 does the same for
    plain tasks, and MPI jobs and process templates besides: it is recommended unless you want nothing but the workers.

    Args:
        resources: `slots`, the number of workers (default: the processors of the runtime's nodes), and `working_dir`,
            the folder in which they run (default: the current one).
        name: the name under which tasks choose the backend.
        batching: see `rhapsody.plugin.ExecutionBackend`.

    Canceling a function ends the worker that runs it, and a new worker takes its place in about a second; a program
    gets SIGTERM, and SIGKILL after three seconds; a task that waits behind others at a worker is left out.

    Raises:
        BackendConfigurationError: unknown resources, or unusable values.
    """

    capabilities = BackendCapabilities(cancel_functions=True, cancel_executables=True, batch_executables=True)

    def __init__(
        self, resources: Mapping[str, Any] | None = None, name: str = "dragon_v2", *, batching: Any = None
    ) -> None:
        super().__init__(name, batching=batching)
        self._slots, self._folder = read_resources(resources, name)
        self._group: WorkerGroup | None = None

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        """Start the workers."""
        warn_once(type(self).__name__, context)
        await self._open(context)

    def _start(self, dragon: DragonRuntime) -> None:
        assert self._context is not None
        self._waits_for(WORKERS)
        processors, policies = node_policies()
        self._group = new_group(self, self._context, dragon, self._slots or processors, self._folder, policies)
        self._group.start()

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        """Give the unit to the worker that has the least to do."""
        assert self._group is not None
        self._group.submit(batch, batch.encode())

    @hookimpl
    async def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Stop what runs, by ending workers where it is a function."""
        assert self._group is not None
        return await self._group.cancel(tasks)

    @hookimpl
    async def rhapsody_shutdown(self, wait: bool) -> None:
        """End the workers, and the runtime if it is ours and nobody else uses it."""
        await self._close()

    def _stop(self) -> None:
        if self._group is not None:
            self._group.close()

    def _engine_lost(self) -> None:
        if self._group is not None:
            self._group.wake()


def new_group(
    backend: DragonBackend,
    context: BackendContext,
    dragon: DragonRuntime,
    count: int,
    folder: str | None,
    policies: Sequence[Any],
) -> WorkerGroup:
    """Make a group of workers whose number is the backend's capacity; it is to be started."""
    return WorkerGroup(
        count,
        name=backend.name,
        runtime=dragon,
        session=context.session,
        events=context.events,
        cwd=folder,
        policies=policies,
        changed=lambda up: context.set_capacity(Capacity(slots=up)),
    )


_warned: set[str] = set()


def warn_once(kind: str, context: BackendContext) -> None:
    """Say once in this process that V3 is recommended."""
    if kind not in _warned:
        _warned.add(kind)
        context.log.warning("dragon_v3_is_recommended", backend=context.backend, instead_of=kind)
