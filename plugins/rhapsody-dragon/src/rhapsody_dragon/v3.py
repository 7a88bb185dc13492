"""`dragon`, also `dragon_v3`: Dragon's Batch for jobs and templates, and a group of workers for plain tasks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rhapsody.errors import BackendConfigurationError, UnsupportedError
from rhapsody.plugin import (
    BackendCapabilities,
    BackendContext,
    CancelResult,
    Capacity,
    ComputeTask,
    TaskBatch,
    hookimpl,
)

from .backend import DragonBackend, check_count
from .batchrun import BatchRuns
from .options import check, ranks_of
from .pool import WORKERS, WorkerGroup
from .runtime import DragonRuntime
from .v2 import new_group

OPTIONS: Final = frozenset({"timeout", "pmi", "process_template", "process_templates"})
#: Units that stream mode keeps at Batch for each of its workers; Batch has its own queue and charges for every unit.
STREAM_DEPTH: Final = 8
STREAM_LEAST: Final = 64


class DragonExecutionBackendV3(DragonBackend):
    """Runs functions, executables and MPI jobs on Dragon, on one node or on an allocation.

    In batch mode, the default, a plain task (a function or an executable without options or ranks of its own) goes to
    a group of Dragon worker processes, many to a unit; several hundred times cheaper than on Batch
    (docs/explanation/dragon-engine.md has the measurements). A task with `ranks`, `process_template`,
    `process_templates` or `timeout` is a unit of Dragon's Batch, which starts with the first of them. In stream mode
    every task is a unit of Batch of its own, reported the moment it ends.

    Args:
        name: the name under which tasks choose the backend.
        num_workers: workers in total, over all nodes; None for one on each processor, in stream mode on each core,
            for which Batch takes half of the processors. In batch mode the group has exactly this many. In stream mode
            it must be a multiple of the nodes, and at most the cores; otherwise starting says what there is.
        disable_telemetry: passed to Batch as `disable_telem`: its managers do not take part in Dragon's telemetry.
            Telemetry is off anyway unless DRAGON_TELEMETRY_LEVEL is set, and the worker group never takes part.
        disable_background_batching: has no effect with Dragon 0.15, which always gathers what is submitted within
            5 ms in a thread of its own and has no switch for it; kept for scripts that pass it. Logs a warning.
        disable_batch_submission: stream mode.
        batching: see `rhapsody.plugin.ExecutionBackend`; for batch mode.

    Canceling: what waits never runs. A function of the group ends with its worker, which is replaced; an executable of
    any worker gets SIGTERM, and SIGKILL after three seconds. Batch ends the processes of a job; in a function on Batch
    it raises an exception at the next line of Python, so one that sleeps or computes in C goes on to its real end.

    Raises:
        BackendConfigurationError: unusable values.
    """

    capabilities = BackendCapabilities(
        cancel_functions=True, cancel_executables=True, batch_executables=True, ranks=True, options=OPTIONS
    )

    def __init__(
        self,
        name: str = "dragon",
        num_workers: int | None = None,
        disable_telemetry: bool = False,
        disable_background_batching: bool = False,
        disable_batch_submission: bool = False,
        *,
        batching: Any = None,
    ) -> None:
        super().__init__(name, batching=False if disable_batch_submission else batching)
        check_count("num_workers", num_workers, name)
        self._num_workers = num_workers
        self._disable_telemetry = disable_telemetry
        self._disable_background_batching = disable_background_batching
        self._stream = disable_batch_submission
        self._nodes, self._cores = 1, 1
        self._group: WorkerGroup | None = None
        self._batch: BatchRuns | None = None

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        """Acquire the runtime and start the workers, or in stream mode Batch."""
        if self._disable_background_batching:
            context.log.warning(
                "option_has_no_effect", backend=self.name, option="disable_background_batching", engine="Dragon 0.15"
            )
        await self._open(context)

    def _start(self, dragon: DragonRuntime) -> None:
        from dragon.infrastructure.policy import Policy
        from dragon.native.machine import Node, System, current

        assert self._context is not None
        context = self._context
        nodes = [Node(uid) for uid in System().nodes]
        # As Batch counts: half of the processors of the first node, on every node.
        self._nodes, self._cores = len(nodes), max(1, nodes[0].num_cpus // 2)
        by_name = Policy.Placement.HOST_NAME
        policies = [Policy(placement=by_name, host_name=node.hostname) for node in nodes] if len(nodes) > 1 else []
        workers = (self._workers_per_node() or self._cores) * self._nodes
        self._batch = BatchRuns(
            context,
            runtime=dragon,
            folder=str(Path.cwd()),
            workers_per_node=self._workers_per_node(),
            workers=workers,
            disable_telemetry=self._disable_telemetry,
            policy=Policy(placement=by_name, host_name=current().hostname) if policies else None,
            here=not policies,
        )
        if self._stream:
            self._waits_for("Dragon's Batch")
            self._batch.start()
            context.set_capacity(Capacity(slots=workers, units=max(STREAM_LEAST, STREAM_DEPTH * workers)))
            return
        self._waits_for(WORKERS)
        processors = len(os.sched_getaffinity(0)) if not policies else sum(node.num_cpus for node in nodes)
        self._group = new_group(self, context, dragon, self._num_workers or processors, None, policies)
        self._group.start()

    def _workers_per_node(self) -> int | None:
        """What Batch is asked for: in stream mode the user's number, otherwise its default, since jobs need cores."""
        wanted = self._num_workers
        if not self._stream or wanted is None:
            return None
        most = self._nodes * self._cores
        if wanted % self._nodes or wanted > most:
            raise BackendConfigurationError(
                f"backend {self.name!r}: Dragon's Batch cannot give num_workers={wanted} in stream mode: on "
                f"{self._nodes} node(s) of {self._cores} core(s) it gives a multiple of {self._nodes} up to {most}; "
                f"leave num_workers out to get that many"
            )
        return wanted // self._nodes

    @hookimpl
    def rhapsody_validate(self, tasks: Sequence[ComputeTask]) -> None:
        """Refuse what Batch cannot be given, or would wait for without end."""
        for task in tasks:
            check(task, self.name, OPTIONS)
            if self._batch is not None:
                self._check_ranks(task)

    def _check_ranks(self, task: ComputeTask) -> None:
        ranks, cores = ranks_of(task), self._nodes * self._cores
        if ranks > cores:
            raise UnsupportedError(
                f"task {task.uid}: backend {self.name!r} gives a job one core for each rank and has {cores}, so "
                f"{ranks} ranks would wait for ever; use backend 'dragon_v1', which starts as many processes as it "
                f"has slots"
            )

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        """Give plain tasks to the workers, and others to Batch.

        Raises:
            UnsupportedError: it was accepted before it was known how many cores there are, and has too many ranks.
        """
        assert self._batch is not None
        if self._group is None or not is_plain(batch.tasks[0]):
            self._check_ranks(batch.tasks[0])
            self._batch.submit(batch)
        else:
            self._group.submit(batch, batch.encode())

    @hookimpl
    async def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Stop what can be stopped, wherever it is."""
        assert self._batch is not None
        there = {task.uid for task in tasks if self._group is None or not is_plain(task)}
        results = await self._batch.cancel(there)
        others = [task for task in tasks if task.uid not in there]
        if others and self._group is not None:
            results |= await self._group.cancel(others)
        return results

    @hookimpl
    async def rhapsody_shutdown(self, wait: bool) -> None:
        """End the workers and Batch, and the runtime if it is ours and nobody else uses it."""
        await self._close()

    def _stop(self) -> None:
        try:
            if self._group is not None:
                self._group.close()
        finally:
            if self._batch is not None:
                self._batch.close()

    def _engine_lost(self) -> None:
        if self._group is not None:
            self._group.wake()
        if self._batch is not None:
            self._batch.wake()


def is_plain(task: ComputeTask) -> bool:
    """Whether a task asks for nothing that only Batch has."""
    return not task.backend_options and ranks_of(task) == 1
