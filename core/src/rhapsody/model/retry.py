"""How a task is tried again, and what became of each attempt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import Any

import attrs

from rhapsody.errors import InvalidTaskError, describe


def _listed(causes: Any) -> tuple[Any, ...]:
    return tuple(causes) if isinstance(causes, Iterable) and not isinstance(causes, str) else (causes,)


@attrs.frozen
class Retry:
    """When a task that failed is run again, and how.

    Attributes:
        attempts: how often it runs at most, the first time included.
        delay: seconds between the first attempt and the second. The task is WAITING meanwhile, and holds no slot.
        backoff: by which the delay is multiplied for each attempt after that.
        jitter: the part of each delay, from 0 to 1, by which it is made longer or shorter at random.
        on: what is tried again: "lost" (the worker, the engine or the batch was lost), "error" (the function raised, or
            the executable returned another exit code than 0), types of exceptions, and exit codes.
        fallback: the name of a backend of the session for all attempts but the first. None: the task's own.

    Raises:
        InvalidTaskError: a field of the wrong type, or out of its range.
    """

    attempts: int = 3
    delay: float = 0.0
    backoff: float = 1.0
    jitter: float = 0.0
    on: Sequence[str | int | type[BaseException]] = attrs.field(default=("lost", "error"), converter=_listed)
    fallback: str | None = None

    def __attrs_post_init__(self) -> None:
        """Refuse what makes no sense."""
        if type(self.attempts) is not int or self.attempts < 1:
            raise InvalidTaskError(f"Retry: attempts must be a whole number from 1, not {describe(self.attempts)}")
        for name, least, most in (("delay", 0, inf), ("backoff", 1, inf), ("jitter", 0, 1)):
            value = getattr(self, name)
            if type(value) not in (int, float) or not least <= value <= most or value == inf:
                raise InvalidTaskError(f"Retry: {name} must be a number from {least}, not {describe(value)}")
        for cause in self.on:
            is_type = isinstance(cause, type) and issubclass(cause, BaseException)
            if not (is_type or type(cause) is int or cause in ("lost", "error")):
                raise InvalidTaskError(
                    f"Retry: on takes 'lost', 'error', types of exceptions and exit codes, not {describe(cause)}"
                )
        if not (self.fallback is None or (isinstance(self.fallback, str) and self.fallback)):
            raise InvalidTaskError(f"Retry: fallback must be the name of a backend, not {describe(self.fallback)}")


@attrs.frozen
class Attempt:
    """One time that a task was run.

    Attributes:
        backend: its name.
        error: why it failed; None while it runs, and where it did not fail.
        ran_on: host and process, where known.
        started_at, ended_at: seconds since the epoch, where known.
    """

    backend: str | None
    error: BaseException | None
    ran_on: str | None
    started_at: float | None
    ended_at: float | None
