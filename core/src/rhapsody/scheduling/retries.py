"""Whether a task that failed is tried again: decided before its end is recorded, so that no end is revoked."""

from __future__ import annotations

from typing import Final

from rhapsody.errors import (
    BackendError,
    DependencyError,
    InvalidTaskError,
    ProtocolError,
    SerializationError,
    SessionClosedError,
    UnsupportedError,
    WorkerLostError,
)
from rhapsody.model.outcome import Outcome
from rhapsody.model.retry import Retry
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.scheduling.instructions import TryAgain

_LOST: Final = (WorkerLostError, BackendError)
# What another attempt would meet again; by exact type, since what stands in for a user's exception is a subclass.
_LASTING: Final = frozenset(
    {DependencyError, InvalidTaskError, ProtocolError, SerializationError, SessionClosedError, UnsupportedError}
)


def next_attempt(task: ComputeTask, outcome: Outcome, backend: str, *, is_open: bool) -> TryAgain | None:
    """Return how a task is tried again that ended like this; None where it is not.

    Args:
        task: as it is before the outcome is recorded.
        outcome: of the latest attempt.
        backend: the name of the one that reports it.
        is_open: whether that one takes tasks.
    """
    policies = task.policies
    if outcome.state is not TaskState.FAILED or policies is None or policies.retries is None or policies.is_unwanted:
        return None
    retry, failed = policies.retries, len(policies.past) + 1
    if failed >= retry.attempts or not is_covered(retry, outcome):
        return None
    errors = [attempt.error for attempt in policies.past] + [outcome.exception]
    if sum(isinstance(error, WorkerLostError) for error in errors) >= policies.crash_limit:
        assert outcome.exception is not None  # of a FAILED outcome
        outcome.exception.add_note(f"not tried again: its worker was lost {policies.crash_limit} times (crash_limit)")
        return None
    following = retry.fallback or backend
    if following == backend and not is_open:
        return None
    return TryAgain(task, outcome, following, retry.delay * retry.backoff ** (failed - 1))


def is_covered(retry: Retry, outcome: Outcome) -> bool:
    """Whether an outcome is one of those that a Retry is for."""
    error = outcome.exception
    for cause in retry.on:
        if cause == "lost":
            covered = isinstance(error, _LOST)
        elif cause == "error":
            covered = not isinstance(error, _LOST) and type(error) not in _LASTING
        elif isinstance(cause, type):
            covered = isinstance(error, cause)
        else:
            covered = outcome.exit_code == cause
        if covered:
            return True
    return False
