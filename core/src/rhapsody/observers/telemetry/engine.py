"""Makes spans and metrics of the events that a workflow engine emits for its tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import attrs
from opentelemetry.trace import SpanContext

from rhapsody.observers.telemetry import events
from rhapsody.observers.telemetry.events import BaseEvent
from rhapsody.observers.telemetry.measures import Measures
from rhapsody.observers.telemetry.spans import Done, Spans

_LIVE: Final = 100_000  # tasks that are followed at a time; of some, blocks say, no end is reported
_ENDS: Final = {"TaskCompleted": "completed", "TaskFailed": "failed", "TaskCanceled": "canceled"}


@attrs.define(eq=False)
class _Task:
    """A task that has not ended."""

    created: float
    parent: SpanContext | None
    links: Sequence[str]
    attributes: dict[str, Any]
    started: float | None = None
    steps: list[tuple[str, float, Mapping[str, Any]]] = attrs.field(factory=list)


class EngineTasks:
    """Follows the tasks of a workflow engine.

    Args:
        measures: counts them.
        spans: takes their spans.

    Attributes:
        enrichers: say, for the event of a task's creation, what else its span has.
    """

    def __init__(self, measures: Measures, spans: Spans) -> None:
        self.enrichers: list[Callable[[BaseEvent], Mapping[str, Any]]] = []
        self._measures = measures
        self._spans = spans
        self._live: dict[str, _Task] = {}

    def take(self, event: BaseEvent, parent: SpanContext | None) -> None:
        """Take an event; `parent` is the span in which it was emitted."""
        uid, kind = event.task_id, event.event_type
        if uid is None:
            return
        task = self._live.get(uid)
        if task is None:
            if kind == "TaskCanceled":  # it had ended for the engine, which says so twice
                return
            task = self._live[uid] = self._begin(event, uid, parent)
            if len(self._live) > _LIVE:
                del self._live[next(iter(self._live))]
        key = (event.backend, "")
        if kind == "TaskSubmitted":
            self._measures.counts["submitted"][key] += 1
        elif kind == "TaskStarted" and task.started is None:
            task.started = event.event_time
            self._measures.counts["started"][key] += 1
            self._measures.running[key] += 1
        if kind in _ENDS:
            del self._live[uid]
            self._end(uid, task, event, _ENDS[kind])
        elif kind != "TaskCreated":
            task.steps.append((kind, event.event_time, {}))

    def _begin(self, event: BaseEvent, uid: str, parent: SpanContext | None) -> _Task:
        given = event.attributes
        attributes: dict[str, Any] = {"task_id": uid, "session_id": event.session_id}
        attributes |= {key: given[key] for key in ("executable", "task_type") if key in given}
        for enricher in self.enrichers:
            attributes |= enricher(event)
        return _Task(event.event_time, parent, tuple(given.get("depends_on", ())), attributes)

    def _end(self, uid: str, task: _Task, event: BaseEvent, status: str) -> None:
        error = event.error_type if isinstance(event, events.TaskFailed) else ""
        seconds = None
        if task.started is not None:
            self._measures.running[event.backend, ""] -= 1
            seconds = max(0.0, event.event_time - task.started)
        self._measures.ended(status, event.backend, seconds, error)
        attributes = {**task.attributes, "backend": event.backend, "status": status}
        if error:
            attributes["error_type"] = error
        if seconds is not None:
            attributes["duration_seconds"] = seconds
        parent, links, steps = task.parent, task.links, task.steps
        self._spans.add(
            Done, "task", uid, task.created, event.event_time, status, error, attributes, parent, links, steps
        )
