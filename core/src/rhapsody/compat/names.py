"""Names of the package `rhapsody-py` that have no other place here, on top of this one."""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import Any

from rhapsody.errors import BackendNotFoundError, UnsupportedError
from rhapsody.model.states import FINAL_STATES, TaskState
from rhapsody.seam.backend import AttachableBackend
from rhapsody.seam.discovery import available_backends, load_backend

_registered: dict[str, type[AttachableBackend]] = {}


class BackendMainStates(StrEnum):
    """What the engine of a backend does."""

    INITIALIZED = "INITIALIZED"
    RUNNING = "RUNNING"
    SHUTDOWN = "SHUTDOWN"


class StateMapper:
    """The states of a backend's tasks by name: `StateMapper("dask").DONE`. They are the same for all backends.

    Args:
        backend: a backend, or its name.
    """

    DONE = TaskState.DONE.value
    FAILED = TaskState.FAILED.value
    CANCELED = TaskState.CANCELED.value
    RUNNING = TaskState.RUNNING.value

    def __init__(self, backend: object) -> None:
        self.backend = backend

    @property
    def terminal_states(self) -> tuple[str, ...]:
        """The states that a task never leaves."""
        return tuple(state.value for state in FINAL_STATES)

    def to_main_state(self, state: str) -> TaskState:
        """Return a backend's state as a TaskState; ValueError where it is none."""
        return TaskState(state)

    def get_backend_state(self, state: TaskState | str) -> str:
        """Return the text of a state; ValueError where it is none."""
        return TaskState(state).value


class BackendRegistry:
    """The backends that are installed, by name; `rhapsody.api.available_backends` says more of each."""

    @classmethod
    def get_backend_class(cls, name: str) -> type[AttachableBackend]:
        """Import the class of a backend.

        Raises:
            BackendNotFoundError, BackendNotInstalledError, BackendLoadError: it cannot be had.
        """
        return load_backend(name)

    @classmethod
    def list_backends(cls) -> list[str]:
        """List the names of what is installed."""
        return [info.name for info in available_backends() if info.installed]

    @classmethod
    def register_backend(cls, name: str, backend: object) -> None:
        """Refuse to register a backend in one process alone.

        Raises:
            BackendNotFoundError: always; it says how a backend is registered.
        """
        raise BackendNotFoundError(
            f"backend {name!r} cannot be registered in a running program: name it in the entry points "
            f"`rhapsody.backends` of its distribution, or give an instance to the session"
        )


def discover_backends() -> dict[str, bool]:
    """Return which backends are known, and whether each is installed."""
    return {info.name: info.installed for info in available_backends()}


def enable_logging(
    level: int = logging.INFO,
    format_string: str | None = "%(asctime)s | %(levelname)-8s | [%(name)s] | %(message)s",
    stream: Any = None,
    force: bool = True,
) -> None:
    """Write the records of RHAPSODY to a stream; RHAPSODY_LOG_LEVEL does so without a line of code.

    Args:
        level: of the records, and above.
        format_string: of `logging.Formatter`.
        stream: None for stderr.
        force: replace what an earlier call set; otherwise a second call does nothing.
    """
    root = logging.getLogger("rhapsody")
    ours = [handler for handler in root.handlers if getattr(handler, "rhapsody_enabled", False)]
    if ours and not force:
        return
    for handler in ours:
        root.removeHandler(handler)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter(format_string))
    handler.rhapsody_enabled = True  # type: ignore[attr-defined]  # marks the handler for the next call
    root.addHandler(handler)
    root.setLevel(level)


class AITask:
    """A prompt for a language model, which no backend of RHAPSODY serves."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise UnsupportedError(
            "RHAPSODY has no backend for prompts; ask the model from a function: "
            "ComputeTask(function=ask, args=(prompt,))"
        )
