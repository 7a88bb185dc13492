"""Checks whose messages an author can mend a backend by."""

from __future__ import annotations

from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.testing.ledger import ConformanceError

__tracebackhide__ = True  # frames of the suite


def check(true: object, otherwise: str) -> None:
    """Raise ConformanceError with a sentence that an author can mend the backend by."""
    if not true:
        raise ConformanceError(otherwise)


def state_of(task: ComputeTask) -> str:
    """Describe how a task ended, for a message."""
    if task.exception is None:
        return str(task.state)
    return f"{task.state} with {type(task.exception).__name__}: {task.exception}"


def must_be(task: ComputeTask, state: TaskState, about: str) -> None:
    """Raise ConformanceError unless the task is in this state."""
    check(task.state is state, f"{about} must end {state}; it ended {state_of(task)}")
