"""What worker processes are started with, and how long each is kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from rhapsody.errors import BackendConfigurationError, describe
from rhapsody.protocol.encoding import dumps


@attrs.frozen
class WorkerOptions:
    """The options of a pool for its workers; those of `ConcurrentExecutionBackend` of the same names."""

    initializer: Callable[..., Any] | None = None
    initargs: Sequence[Any] = ()
    environment: Mapping[str, str | None] | None = None
    max_tasks_per_child: int | None = None

    def check(self, backend: str, executor: object) -> None:
        """Refuse what makes no sense.

        Raises:
            BackendConfigurationError: naming the option.
        """
        given = [name for name, value in attrs.asdict(self, recurse=False).items() if value not in (None, ())]
        problem = None
        if given and executor != "processes":
            problem = f"{' and '.join(given)} are for executor='processes', whose workers the backend starts itself"
        elif self.initializer is not None and not callable(self.initializer):
            problem = f"initializer must be callable, not {describe(self.initializer)}"
        elif self.initargs and self.initializer is None:
            problem = "initargs are the arguments of an initializer, and there is none"
        elif not isinstance(self.initargs, Sequence) or isinstance(self.initargs, str):
            problem = f"initargs must be a tuple, not {describe(self.initargs)}"
        elif self.environment is not None and not _is_environment(self.environment):
            problem = f"environment must map text to text or None, not {describe(self.environment)}"
        elif self.max_tasks_per_child is not None and not _is_count(self.max_tasks_per_child):
            problem = f"max_tasks_per_child must be a positive whole number, not {describe(self.max_tasks_per_child)}"
        if problem is not None:
            raise BackendConfigurationError(f"backend {backend!r}: {problem}")

    def startup(self) -> bytes | None:
        """Return the initializer and its arguments for a worker; None where there is none."""
        return None if self.initializer is None else dumps((self.initializer, tuple(self.initargs)))

    def apply_to(self, environment: dict[bytes, bytes]) -> None:
        """Set the variables of the workers, or remove them."""
        for name, value in (self.environment or {}).items():
            if value is None:
                environment.pop(os.fsencode(name), None)
            else:
                environment[os.fsencode(name)] = os.fsencode(value)


def _is_environment(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(text, str | None) for name, text in value.items()
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
