"""What an author of a backend, or of an observer, imports; `rhapsody.hookspecs` has the contracts."""

from __future__ import annotations

from ._marker import hookimpl
from .backends.base import ExecutionBackend
from .batch import TaskBatch, failure_of
from .batching import Backlog
from .capabilities import INTERFACE_VERSION, BackendCapabilities, Batching, Deadlines
from .context import BackendContext
from .events import (
    BackendLost,
    CancelResult,
    Capacity,
    CapacityChanged,
    Event,
    EventChannel,
    Outcome,
    Returned,
    Started,
)
from .log import get_logger
from .states import TaskState
from .task import ComputeTask, Resources

__all__ = [
    "INTERFACE_VERSION",
    "BackendCapabilities",
    "BackendContext",
    "BackendLost",
    "Backlog",
    "Batching",
    "CancelResult",
    "Capacity",
    "CapacityChanged",
    "ComputeTask",
    "Deadlines",
    "Event",
    "EventChannel",
    "ExecutionBackend",
    "Outcome",
    "Resources",
    "Returned",
    "Started",
    "TaskBatch",
    "TaskState",
    "failure_of",
    "get_logger",
    "hookimpl",
]
