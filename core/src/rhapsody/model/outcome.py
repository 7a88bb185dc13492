"""What a backend reports of one task, and what becomes of a cancel."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import attrs

from rhapsody.errors import InvalidBackendError, describe
from rhapsody.model.states import TaskState


@attrs.define(eq=False)
class Started:
    """A worker began to run the task.

    Attributes:
        uid: the task.
        at: seconds since the epoch.
        ran_on: host and process, where known.
        native_id: what the engine calls the job that runs the task.
        logs: where the engine's own log of that job is: a path or an address.
    """

    uid: str
    at: float
    ran_on: str | None = None
    native_id: str | None = None
    logs: str | None = None


@attrs.define(eq=False)
class Outcome:
    """How one task ended; reported exactly once for each task that a backend holds.

    Attributes:
        uid: the task.
        state: DONE, FAILED or CANCELED.
        return_value: of a function.
        exception: why it failed; a FAILED outcome must have one.
        stdout, stderr, exit_code, stdout_path, stderr_path: of an executable.
        started_at, ended_at: seconds since the epoch, where known.
        ran_on: host and process, where known.
        attempt: counts the times that the task was started, where an engine starts it again by itself.
        native_id: what the engine calls the job that ran the task.
        logs: where the engine's own log of that job is: a path or an address.

    Raises:
        InvalidBackendError: a state that is no TaskState.
    """

    uid: str
    state: TaskState
    return_value: Any = None
    exception: BaseException | None = None
    stdout: str | None = None
    stderr: str | None = None
    exit_code: int | None = None
    stdout_path: str | None = None
    stderr_path: str | None = None
    started_at: float | None = None
    ended_at: float | None = None
    ran_on: str | None = None
    attempt: int | None = None
    native_id: str | None = None
    logs: str | None = None

    def __attrs_post_init__(self) -> None:
        """Refuse what is no TaskState, which also compares equal to its name."""
        if type(self.state) is not TaskState:
            raise InvalidBackendError(
                f"Outcome of task {self.uid}: its state must be a TaskState, not {describe(self.state)}: "
                f"TaskState.DONE, TaskState.FAILED or TaskState.CANCELED of rhapsody.plugin"
            )


@attrs.define(eq=False)
class Returned:
    """These tasks never started, and will not: they go back to the backlog to be run again elsewhere.

    Attributes:
        uids: the tasks.

    Raises:
        InvalidBackendError: a single uid, of which each letter would be taken for one.
    """

    uids: Sequence[str]

    def __attrs_post_init__(self) -> None:
        """Refuse what is no list."""
        if isinstance(self.uids, str):
            raise InvalidBackendError(f"Returned takes a list of uids, not {describe(self.uids)}: Returned([uid])")


class CancelResult(StrEnum):
    """What became of one task that was asked to stop.

    NEVER_STARTED: it waited, and will never run. STOPPED: it ran, and was stopped. TOO_LATE: it had ended before.
    CANNOT_STOP: it runs where nothing can stop it, and keeps its real end. ABANDONED: it runs where nothing can stop
    it, and whoever canceled it gave it up: it is CANCELED, and its late end is dropped.
    """

    NEVER_STARTED = "NEVER_STARTED"
    STOPPED = "STOPPED"
    TOO_LATE = "TOO_LATE"
    CANNOT_STOP = "CANNOT_STOP"
    ABANDONED = "ABANDONED"
