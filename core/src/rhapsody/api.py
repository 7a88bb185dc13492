"""What a user imports: sessions, tasks, states and errors."""

from __future__ import annotations

from .capabilities import Batching
from .discovery import available_backends, get_backend, refresh
from .errors import (
    AmbiguousBackendError,
    BackendConfigurationError,
    BackendError,
    BackendLoadError,
    BackendLostError,
    BackendNotFoundError,
    BackendNotInstalledError,
    BackendShutdownError,
    BackendStartError,
    DuplicateBackendError,
    DuplicateTaskError,
    InvalidBackendError,
    InvalidTaskError,
    RhapsodyError,
    SerializationError,
    SessionClosedError,
    SessionError,
    SettingsError,
    SubmitError,
    TaskCanceledError,
    TaskError,
    TaskExecutionError,
    UnclosedSessionWarning,
    UnsupportedError,
    WorkerLostError,
)
from .events import CancelResult
from .session import Session
from .states import TaskState
from .task import ComputeTask, Resources

__all__ = [
    "AmbiguousBackendError",
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
    "DuplicateBackendError",
    "DuplicateTaskError",
    "InvalidBackendError",
    "InvalidTaskError",
    "Resources",
    "RhapsodyError",
    "SerializationError",
    "Session",
    "SessionClosedError",
    "SessionError",
    "SettingsError",
    "SubmitError",
    "TaskCanceledError",
    "TaskError",
    "TaskExecutionError",
    "TaskState",
    "UnclosedSessionWarning",
    "UnsupportedError",
    "WorkerLostError",
    "available_backends",
    "get_backend",
    "refresh",
]
