"""`dragon_v1`: every task has a process of its own, or several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rhapsody.plugin import EXECUTABLE, BackendCapabilities, ComputeTask

from .backend import DragonBackend, read_resources
from .task_options import is_plain


class DragonExecutionBackendV1(DragonBackend):
    """Runs each task in a process of its own, for isolation; an executable of several ranks in a ProcessGroup.

    A plain executable is started by a worker, in 4 ms. A function is a job: its Dragon process starts an interpreter,
    which takes about 0.3 s. V3 runs functions on its workers: it is recommended unless each needs a process of its own.

    Args:
        resources: `slots`, how many processes run at the same time, and workers start executables (default: the
            processors of the runtime's nodes; a task takes one for each core of each of its ranks), and `working_dir`,
            where they run (default: the current folder).
        name: the name under which tasks choose the backend.
        max_in_flight: see `rhapsody.plugin.ExecutionBackend`.

    `backend_options` of a task: `timeout` in seconds, and `pmi` for several ranks ("cray", which is Dragon's own
    default, "pmix" or None). Canceling an executable sends SIGTERM to its process group, or to every process of a job
    on this node, and SIGKILL after three seconds; a function's process gets SIGKILL at once. What they leave running in
    the background ends with them. On other nodes Dragon signals the processes of a job that it started itself, and the
    rest ends with the runtime.

    Raises:
        BackendConfigurationError: unknown resources, or unusable values.
    """

    capabilities = BackendCapabilities(
        cancel_functions=True,
        cancel_executables=True,
        ranks=True,
        cores_per_rank=True,
        gpus=True,
        shared_data=True,
        options=frozenset({"timeout", "pmi"}),
    )

    def __init__(
        self,
        resources: Mapping[str, Any] | None = None,
        name: str = "dragon_v1",
        *,
        max_in_flight: int | None = None,
    ) -> None:
        slots, folder = read_resources(resources, name)
        super().__init__(name, workers=slots, slots=slots, folder=folder, batching=False, max_in_flight=max_in_flight)

    def is_for_worker(self, task: ComputeTask) -> bool:
        """Whether a worker runs a task: a plain executable, which is a process of its own there too."""
        return task.kind is EXECUTABLE and is_plain(task)
