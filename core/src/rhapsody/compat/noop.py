"""`NoopExecutionBackend`: ends every task at once, and runs nothing."""

from __future__ import annotations

from typing import Any, Final

from rhapsody.backends.base import ExecutionBackend
from rhapsody.hookspecs import hookimpl
from rhapsody.model.outcome import Outcome
from rhapsody.model.states import TaskState
from rhapsody.protocol.batch import TaskBatch
from rhapsody.seam.capabilities import BackendCapabilities
from rhapsody.seam.capacity import Capacity
from rhapsody.seam.context import BackendContext

_OUTPUT: Final = "Dummy Output"  # of each task, as scripts expect it
_AT_ONCE: Final = 2048  # tasks between two turns of the loop


class NoopExecutionBackend(ExecutionBackend):
    """Ends every task as DONE without running it, for tests of a workflow's shape.

    Args:
        name: the name under which tasks choose the backend.
        options: those of `ExecutionBackend`.
    """

    interface_version = 1
    capabilities = BackendCapabilities(remote=False, ranks=True, gpus=True, memory=True, options=None)

    def __init__(self, name: str = "noop", **options: Any) -> None:
        super().__init__(name, **options)
        self._context: BackendContext | None = None

    @hookimpl
    def rhapsody_init(self, context: BackendContext) -> None:
        """Take any number of tasks."""
        self._context = context
        context.set_capacity(Capacity(slots=_AT_ONCE, tasks=_AT_ONCE))

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        """Report that each task has ended."""
        assert self._context is not None
        done = TaskState.DONE
        self._context.events.put(
            [Outcome(task.uid, done, return_value=_OUTPUT, stdout=_OUTPUT) for task in batch.tasks]
        )

    @hookimpl
    def rhapsody_shutdown(self) -> None:
        """There is nothing to release."""
        self._context = None
