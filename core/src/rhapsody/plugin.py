"""What an author of a backend, or of an observer, imports; `rhapsody.hookspecs` has the contracts."""

from __future__ import annotations

from rhapsody.backends.base import ExecutionBackend
from rhapsody.hookspecs import hookimpl
from rhapsody.log import get_logger
from rhapsody.model.kept import KeptResult
from rhapsody.model.kinds import EXECUTABLE, FUNCTION, Kind
from rhapsody.model.outcome import CancelResult, Outcome, Returned, Started
from rhapsody.model.resources import Resources
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.model.transition import Transition
from rhapsody.protocol.batch import TaskBatch
from rhapsody.protocol.command import Command, command_of
from rhapsody.protocol.failures import failure_of
from rhapsody.protocol.store import FileStore, SharedStore
from rhapsody.protocol.trace import trace_environment
from rhapsody.scheduling.backlog import Backlog
from rhapsody.seam.capabilities import INTERFACE_VERSION, BackendCapabilities, Batching, Deadlines
from rhapsody.seam.capacity import Capacity, CapacityChanged
from rhapsody.seam.channel import BackendLost, Event, EventChannel
from rhapsody.seam.context import BackendContext
from rhapsody.seam.guard import BackendGuard
from rhapsody.seam.jobs import FileJobs
from rhapsody.seam.loss import settle_lost
from rhapsody.seam.reader import BatchReader
from rhapsody.seam.translation import outcome_of

__all__ = [
    "EXECUTABLE",
    "FUNCTION",
    "INTERFACE_VERSION",
    "BackendCapabilities",
    "BackendContext",
    "BackendGuard",
    "BackendLost",
    "Backlog",
    "BatchReader",
    "Batching",
    "CancelResult",
    "Capacity",
    "CapacityChanged",
    "Command",
    "ComputeTask",
    "Deadlines",
    "Event",
    "EventChannel",
    "ExecutionBackend",
    "FileJobs",
    "FileStore",
    "KeptResult",
    "Kind",
    "Outcome",
    "Resources",
    "Returned",
    "SharedStore",
    "Started",
    "TaskBatch",
    "TaskState",
    "Transition",
    "command_of",
    "failure_of",
    "get_logger",
    "hookimpl",
    "outcome_of",
    "settle_lost",
    "trace_environment",
]
