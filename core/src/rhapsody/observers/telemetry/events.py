"""What telemetry reports to its subscribers and writes into its file: one event for each step of a task."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any, ClassVar

import attrs

_numbers = itertools.count(1)
_program = f"{os.getpid():x}-{time.time_ns():x}"


def _unique() -> str:
    return f"{_program}-{next(_numbers):x}"


@attrs.define(kw_only=True, eq=False)
class BaseEvent:
    """Something that happened.

    Attributes:
        event_type: the name of the class.
        event_id: unique.
        event_time: seconds since the epoch, when it happened.
        emit_time: likewise, when it was recorded.
        session_id: uid of the session, or of the workflow engine.
        backend: name of the backend.
        task_id: uid of the task, of those of tasks.
        node_id: the machine, of those of machines.
        attributes: what else is to be said; `executable` and `task_type` of tasks.
    """

    event_type: ClassVar[str] = "BaseEvent"

    session_id: str
    backend: str = ""
    task_id: str | None = None
    node_id: str | None = None
    event_time: float = attrs.field(factory=time.time)
    emit_time: float = attrs.field(factory=time.time)
    event_id: str = attrs.field(factory=_unique)
    attributes: dict[str, Any] = attrs.field(factory=dict)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Name the event after its class."""
        super().__init_subclass__(**kwargs)
        cls.event_type = cls.__dict__.get("event_type", cls.__name__)


class SessionStarted(BaseEvent):
    """Telemetry of a session began."""


class TaskCreated(BaseEvent):
    """A task was described."""


class TaskSubmitted(BaseEvent):
    """A task was accepted."""


class TaskQueued(BaseEvent):
    """A task waits for room at its backend, and for nothing else."""


class TaskStarted(BaseEvent):
    """A task runs."""


@attrs.define(kw_only=True, eq=False)
class _Ended(BaseEvent):
    """Something ended; `duration_seconds` is what it took, of a task since its start."""

    duration_seconds: float = 0.0


class SessionEnded(_Ended):
    """Telemetry of a session ended."""


class TaskCompleted(_Ended):
    """A task is DONE."""


@attrs.define(kw_only=True, eq=False)
class TaskFailed(_Ended):
    """A task is FAILED; `error_type` names the class of its exception."""

    error_type: str = "unknown"


class TaskCanceled(_Ended):
    """A task is CANCELED."""


@attrs.define(kw_only=True, eq=False)
class ResourceUpdate(BaseEvent):
    """What a machine, or one of its GPUs, was used at some moment.

    Attributes:
        cpu_percent: of all cores together, since the event before.
        memory_percent: of the machine's memory.
        gpu_percent: of one GPU.
        gpu_id: its number, from 0.
        disk_read_bytes: since the machine started, as are the other three.
    """

    cpu_percent: float | None = None
    memory_percent: float | None = None
    gpu_percent: float | None = None
    gpu_id: int | None = None
    disk_read_bytes: float | None = None
    disk_write_bytes: float | None = None
    net_sent_bytes: float | None = None
    net_recv_bytes: float | None = None

    @property
    def resource_scope(self) -> str:
        """`per_node`, or `per_gpu`."""
        return "per_node" if self.gpu_id is None else "per_gpu"


def define_event(name: str, **fields: Any) -> type[BaseEvent]:
    """Make a class of events of one's own.

    Args:
        name: of the event, with a dot in it so that it is none of these.
        fields: further fields, with their defaults.
    """
    made: Any = attrs.make_class(
        name.rpartition(".")[2],
        {field: attrs.field(default=default) for field, default in fields.items()},
        bases=(BaseEvent,),
        kw_only=True,
        eq=False,
        slots=True,
    )
    made.event_type = name
    return made  # type: ignore[no-any-return]  # a class of events by its bases


def make_event(kind: type[BaseEvent], *, session_id: str, backend: str, **fields: Any) -> BaseEvent:
    """Make an event that happens now, unless `event_time` says otherwise."""
    return kind(session_id=session_id, backend=backend, **fields)


def plain(event: BaseEvent) -> dict[str, Any]:
    """Return an event as a dict of its fields."""
    fields = {name: getattr(event, name) for name in _names_of(type(event))}
    if isinstance(event, ResourceUpdate):
        fields["resource_scope"] = event.resource_scope
    return {"event_type": event.event_type, **fields}


_names: dict[type[BaseEvent], tuple[str, ...]] = {}  # of the fields of each class


def _names_of(kind: type[BaseEvent]) -> tuple[str, ...]:
    if kind not in _names:
        _names[kind] = tuple(field.name for field in attrs.fields(kind))
    return _names[kind]
