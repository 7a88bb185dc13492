"""What a backend reports as the end of a task, mended where it breaks the contract."""

from __future__ import annotations

from rhapsody.errors import BackendError, SubmitError
from rhapsody.model.outcome import Outcome
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.scheduling.canceling import canceled_error


def normalize_outcome(outcome: Outcome, task: ComputeTask, backend: str) -> None:
    """Mend an outcome that is not DONE: it must be final, and must carry an exception."""
    if outcome.state is TaskState.CANCELED:
        outcome.exception = outcome.exception or canceled_error(task)
    elif outcome.state is not TaskState.FAILED:
        outcome.exception = BackendError(f"backend {backend!r} reported {outcome.state!r} as the end of {task.uid}")
        outcome.state = TaskState.FAILED
    elif not isinstance(outcome.exception, BaseException):
        said = f": {outcome.exception}" if outcome.exception else " without saying why"
        outcome.exception = BackendError(f"backend {backend!r} reported that task {task.uid} failed{said}")


def submit_error(error: Exception, backend: str) -> SubmitError:
    """Return the error of the tasks of a batch that `rhapsody_submit` refused with this error."""
    if isinstance(error, SubmitError):
        return error
    problem = SubmitError(f"backend {backend!r} did not take the batch: {type(error).__name__}: {error}")
    problem.__cause__ = error
    return problem
