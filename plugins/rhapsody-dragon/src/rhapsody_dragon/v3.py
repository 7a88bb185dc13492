"""`dragon`, also `dragon_v3`: a group of workers for plain tasks, and a launcher of jobs for all others."""

from __future__ import annotations

from typing import Any, Final

from rhapsody.plugin import BackendCapabilities, BackendContext, hookimpl

from .backend import DragonBackend, check_count

OPTIONS: Final = frozenset({"timeout", "pmi", "process_template", "process_templates"})


class DragonExecutionBackendV3(DragonBackend):
    """Runs functions, executables and MPI jobs on Dragon, on one node or on an allocation.

    A plain task (a function or an executable without options or resources of its own) goes to a group of Dragon worker
    processes; one with `ranks`, cores, GPUs, a process template or a limit of time is a job, with native Dragon
    processes of its own. Both take their processors from one count: a job of 8 ranks waits until 8 of them are free.
    Memory is not reserved.

    Args:
        name: the name under which tasks choose the backend.
        num_workers: workers in total, over all nodes; None for one on each processor.
        disable_telemetry: Dragon 0.15 samples only where DRAGON_TELEMETRY_LEVEL is above 0; this turns it off for a
            runtime that the backend starts. One that runs already keeps its setting, which a warning in the log says.
        disable_background_batching: has no effect: nothing is gathered in the background. Kept for scripts that pass
            it; a warning in the log says so.
        disable_batch_submission: stream mode. Without it short tasks travel in batches of many; in stream mode each
            task is sent, started, reported, canceled and timed by itself, the moment there is a worker for it.
        batching: see `rhapsody.plugin.ExecutionBackend`; for batch mode.
        max_in_flight: see there too.

    Canceling: what waits never runs. A function ends with its worker, which is replaced; an executable and the
    processes of a job get SIGTERM, and SIGKILL after three seconds.

    Raises:
        BackendConfigurationError: unusable values.
    """

    is_latest = True
    capabilities = BackendCapabilities(
        cancel_functions=True,
        cancel_executables=True,
        batch_executables=True,
        ranks=True,
        cores_per_rank=True,
        gpus=True,
        shared_data=True,
        options=OPTIONS,
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
        max_in_flight: int | None = None,
    ) -> None:
        check_count("num_workers", num_workers, name)
        batching = False if disable_batch_submission else batching
        shared: Any = {"batching": batching, "max_in_flight": max_in_flight}
        super().__init__(name, workers=num_workers, telemetry=not disable_telemetry, **shared)
        self._disable_background_batching = disable_background_batching

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        """Acquire the runtime and start the workers."""
        without_effect = ["disable_background_batching"] if self._disable_background_batching else []
        try:
            await super().rhapsody_init(context)
            if self._runtime is not None and self._runtime.samples and not self._telemetry:
                without_effect.append("disable_telemetry")  # the runtime was there before
        finally:
            for option in without_effect:
                context.log.warning("option_has_no_effect", backend=self.name, option=option, engine="Dragon 0.15")
