"""What a user imports: sessions, tasks, states and errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rhapsody.backends.lookup import get_backend
from rhapsody.errors import (
    AmbiguousBackendError,
    BackendConfigurationError,
    BackendError,
    BackendLoadError,
    BackendLostError,
    BackendNotFoundError,
    BackendNotInstalledError,
    BackendShutdownError,
    BackendStartError,
    DependencyError,
    DuplicateBackendError,
    DuplicateTaskError,
    InvalidBackendError,
    InvalidTaskError,
    JournalError,
    ProtocolError,
    RepeatedRandomWarning,
    RhapsodyError,
    SerializationError,
    SessionClosedError,
    SessionError,
    SettingsError,
    SubmitError,
    TaskCanceledError,
    TaskError,
    TaskExecutionError,
    TaskInterruptedError,
    TaskTimeoutError,
    UnclosedSessionWarning,
    UnsupportedError,
    WorkerLostError,
)
from rhapsody.model.outcome import CancelResult
from rhapsody.model.resources import Resources
from rhapsody.model.retry import Attempt, Retry
from rhapsody.model.shared import Shared
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.seam.capabilities import Batching
from rhapsody.seam.discovery import available_backends, refresh
from rhapsody.sessions.session import Session
from rhapsody.worker.seeding import seeded

__path__: list[str] = []  # has old modules, such as `rhapsody.api.session`; `rhapsody.compat` serves them

if not TYPE_CHECKING:  # a type checker should know which names there are

    def __getattr__(name: str) -> Any:
        """Return what an old name is now."""
        from rhapsody.compat import old_name

        return old_name(__name__, name)


__all__ = [
    "AmbiguousBackendError",
    "Attempt",
    "BackendConfigurationError",
    "BackendError",
    "BackendLoadError",
    "BackendLostError",
    "BackendNotFoundError",
    "BackendNotInstalledError",
    "BackendShutdownError",
    "BackendStartError",
    "Batching",
    "CancelResult",
    "ComputeTask",
    "DependencyError",
    "DuplicateBackendError",
    "DuplicateTaskError",
    "InvalidBackendError",
    "InvalidTaskError",
    "JournalError",
    "ProtocolError",
    "RepeatedRandomWarning",
    "Resources",
    "Retry",
    "RhapsodyError",
    "SerializationError",
    "Session",
    "SessionClosedError",
    "SessionError",
    "SettingsError",
    "Shared",
    "SubmitError",
    "TaskCanceledError",
    "TaskError",
    "TaskExecutionError",
    "TaskInterruptedError",
    "TaskState",
    "TaskTimeoutError",
    "UnclosedSessionWarning",
    "UnsupportedError",
    "WorkerLostError",
    "available_backends",
    "get_backend",
    "refresh",
    "seeded",
]
