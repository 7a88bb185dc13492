"""What a task asks of its scheduling, read from its policies; most tasks have none."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, cast

from rhapsody.errors import DependencyError
from rhapsody.model.kept import KeptResult
from rhapsody.model.policies import CRASH_LIMIT, Policies
from rhapsody.model.retry import Attempt, Retry
from rhapsody.model.states import TaskState


class Policed:
    """The properties of a task that ask for its policies."""

    __slots__ = ()

    policies: Policies | None
    state: TaskState
    backend: str | None
    exception: BaseException | None
    ran_on: str | None
    started_at: float | None
    ended_at: float | None
    return_value: Any

    @property
    def after(self) -> Sequence[Any]:
        """The tasks that must be DONE before this one starts, beside those in its arguments."""
        return () if self.policies is None else self.policies.after

    @property
    def after_any(self) -> Sequence[Any]:
        """The tasks that must have ended before this one starts."""
        return () if self.policies is None else self.policies.after_any

    @property
    def retries(self) -> Retry | None:
        """When the task is tried again."""
        return None if self.policies is None else self.policies.retries

    @property
    def crash_limit(self) -> int:
        """How many lost workers end the retries."""
        return CRASH_LIMIT if self.policies is None else self.policies.crash_limit

    @property
    def timeout(self) -> float | None:
        """Seconds that each attempt may run."""
        return None if self.policies is None else self.policies.timeout

    @property
    def deadline(self) -> float | None:
        """Seconds from the submit in which the task must have ended."""
        return None if self.policies is None else self.policies.deadline

    @property
    def keep(self) -> bool:
        """Whether its result stays where it ran."""
        return self.policies is not None and self.policies.keep

    async def fetch(self) -> Any:
        """Wait for the end of the task, and return what its function returned, from wherever that is kept.

        Raises:
            WorkerLostError: it was kept by a worker that is gone.
            SessionClosedError: it was kept, and the session is closed.
            Exception: as `await task` does.
        """
        await cast(Awaitable[Any], self)
        value = self.return_value
        return await value.fetch() if isinstance(value, KeptResult) else value

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Each time that the task was run, the latest last."""
        past = () if self.policies is None else tuple(self.policies.past)
        never_failed = self.state is not TaskState.FAILED or isinstance(self.exception, DependencyError)
        if self.started_at is None and never_failed:
            return past
        return (*past, Attempt(self.backend, self.exception, self.ran_on, self.started_at, self.ended_at))

    @property
    def stdout_file(self) -> Path | None:
        """The file that the executable writes to, where it was given one as `stdout`."""
        return None if self.policies is None else self.policies.stdout_file

    @property
    def stderr_file(self) -> Path | None:
        """The file for its standard error, likewise."""
        return None if self.policies is None else self.policies.stderr_file
