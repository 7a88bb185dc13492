"""`TelemetryManager`: the spans, metrics and events of one session, or of one workflow engine."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

try:
    from opentelemetry import trace
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
except ImportError as error:  # a workflow engine imports this module itself
    raise ImportError(f"telemetry needs OpenTelemetry ({error}): pip install 'rhapsody-core[telemetry]'") from error

from rhapsody.log import get_logger
from rhapsody.observers.telemetry.engine import EngineTasks
from rhapsody.observers.telemetry.events import BaseEvent, ResourceUpdate, SessionEnded, SessionStarted
from rhapsody.observers.telemetry.lines import Lines
from rhapsody.observers.telemetry.measures import Measures
from rhapsody.observers.telemetry.spans import Spans
from rhapsody.observers.telemetry.usage import Usage

log = get_logger(__name__)
Subscriber = Callable[[BaseEvent], Any]
_PERIOD: Final = 0.02  # seconds for which events wait
_AT_ONCE: Final = 0.005  # seconds of work on it before others have their turn
_SHOWN: Final = ("cpu_percent", "memory_percent", "gpu_percent", "disk_read_bytes", "disk_write_bytes")
_SPAN: Final = ("task_id", "backend", "executable", "task_type", "status", "error_type")


class TelemetryManager:
    """Turns what happens into spans and metrics of OpenTelemetry, and notifies subscribers.

    It is used on one event loop; `emit` may be called from any thread.

    Args:
        session_id: uid of the session, or of the workflow engine.
        checkpoint_interval: seconds between two lines of metrics in the file; None: one, at the end.
        checkpoint_path: folder of the file; None: there is none.
        span_processors: of OpenTelemetry; they receive the spans as these end.
        metric_readers: of OpenTelemetry.
        resource: of OpenTelemetry, which describes this program; None: what the environment says.

    Raises:
        SessionError: the file cannot be written.
    """

    def __init__(
        self,
        session_id: str,
        checkpoint_interval: float | None = None,
        checkpoint_path: str | Path | None = None,
        span_processors: Sequence[SpanProcessor] | None = None,
        metric_readers: Sequence[MetricReader] | None = None,
        resource: Resource | None = None,
    ) -> None:
        self._session_id = session_id
        self._lines = Lines(checkpoint_path, session_id) if checkpoint_path is not None else None
        self._checkpoint_interval = checkpoint_interval
        described = Resource.create() if resource is None else resource
        self.measures = Measures(metric_readers or (), described)
        on_span = self._lines.span if self._lines is not None else None
        self.spans = Spans(session_id, span_processors or (), described, on_span)
        self._engine = EngineTasks(self.measures, self.spans)
        self._subscribers: list[Subscriber] = []
        self._failed: set[Subscriber] = set()
        self._calls: set[asyncio.Task[Any]] = set()  # of subscribers that are coroutine functions
        self._waiting: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._backends: list[str] = []
        self._usage: Usage | None = None
        self._poll_interval = 5.0
        self._started = time.time()
        self._ended: float | None = None

    @property
    def session_id(self) -> str:
        """The uid of the session."""
        return self._session_id

    @property
    def listens(self) -> bool:
        """Whether anybody wants events: a subscriber, or the file."""
        return bool(self._subscribers) or self._lines is not None

    # -- life --------------------------------------------------------------------------------------------------------

    def attach_backend(
        self, backend: object, *, session_id: str = "", backend_name: str = "", interval: float = 5.0
    ) -> None:
        """Watch the use of this machine for a backend.

        Args:
            backend: any.
            session_id: not used: the manager has one.
            backend_name: of the backend; its own where it is empty.
            interval: seconds between two readings.
        """
        self._backends.append(backend_name or str(getattr(backend, "name", "")))
        self._poll_interval = interval

    async def start(self) -> None:
        """Begin to record."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self.emit(SessionStarted(session_id=self._session_id, backend="rhapsody", event_time=self._started))
        if self._backends:
            self._usage = Usage()
            self._poll()
        if self._lines is not None and self._checkpoint_interval is not None:
            self._again("checkpoint", self._checkpoint_interval, self._checkpoint)

    async def stop(self) -> None:
        """Record the end, and export what is left; may be called again."""
        exports = self.finish()
        await asyncio.to_thread(lambda: [export() for export in exports])
        if self._calls:
            await asyncio.wait(self._calls)

    def finish(self) -> Sequence[Callable[[], object]]:
        """Record the end, notify the subscribers, and return what exports the rest, which may block."""
        if self._ended is not None:
            return ()
        self._drain(for_good=True)
        self._ended = time.time()
        for timer in self._timers.values():
            timer.cancel()
        if self._usage is not None:
            self._usage.close()
        self.spans.end(self._ended)
        seconds = self.session_duration()
        who: dict[str, Any] = {"session_id": self._session_id, "backend": "rhapsody"}
        self.publish(SessionEnded(**who, event_time=self._ended, duration_seconds=seconds))
        if self._lines is not None:
            self._checkpoint()
            self._lines.close()
            self._lines = None
        return self.spans.close(), self.measures.close()

    # -- what happens ------------------------------------------------------------------------------------------------

    def emit(self, event: BaseEvent) -> None:
        """Record an event: those of tasks make spans and metrics; subscribers and the file have it."""
        self.push(self._take, (event, trace.get_current_span().get_span_context()))

    def push(self, handler: Callable[[Any], None], what: Any) -> None:
        """Have something handled in its turn, on the loop and soon."""
        if self._ended is not None:
            return
        self._waiting.append((handler, what))
        if "drain" not in self._timers and self._loop is not None:
            if threading.get_ident() == self._thread:
                self._again("drain", _PERIOD, self._drain)
            else:
                with contextlib.suppress(RuntimeError):  # the loop is closed: `finish` handles it
                    self._loop.call_soon_threadsafe(self._drain)

    def publish(self, event: BaseEvent) -> None:
        """Write an event into the file, and notify the subscribers. What one of them raises is logged once."""
        if self._lines is not None:
            self._lines.event(event, self.spans.ids_of)
        for subscriber in self._subscribers:
            try:
                answer = subscriber(event)
                if inspect.isawaitable(answer):
                    call = asyncio.ensure_future(answer)
                    self._calls.add(call)
                    call.add_done_callback(self._called)
            except Exception as error:  # the subscriber's trouble: the others must be notified all the same
                if subscriber not in self._failed:
                    self._failed.add(subscriber)
                    log.warning("subscriber_failed", session=self._session_id, exc_info=error)

    def subscribe(self, callback: Subscriber) -> None:
        """Call back with each event from now on, on the loop; a coroutine function's calls run beside each other."""
        self._subscribers.append(callback)

    def register_span_enricher(self, enricher: Callable[[BaseEvent], Mapping[str, Any]]) -> None:
        """Add what a function returns for the event of a task's creation to the attributes of the task's span."""
        self._engine.enrichers.append(enricher)

    def span_scope(self, name: str, attributes: Mapping[str, Any] | None = None) -> Any:
        """Open a span, as a context manager: tasks that are created meanwhile are its children."""
        return self.spans.scope(name, attributes)

    def annotate_current_span(self, event: BaseEvent) -> None:
        """Add an event to the span that is current."""
        attributes = {key: str(value) for key, value in event.attributes.items()}
        trace.get_current_span().add_event(event.event_type, attributes, int(event.event_time * 1e9))

    def _take(self, what: tuple[BaseEvent, trace.SpanContext]) -> None:
        event, here = what
        if isinstance(event, ResourceUpdate):
            self.measures.set_usage(event)
        else:
            self._engine.take(event, here if here.is_valid else None)
        if self.listens:
            self.publish(event)

    def _drain(self, for_good: bool = False) -> None:
        """Handle what waits, for a moment and then again, or all of it."""
        self._timers.pop("drain", None)
        until = time.monotonic() + _AT_ONCE
        most = len(self._waiting) // 2  # of what piles up, half at least, so that it cannot pile up for ever
        while self._waiting:
            handler, what = self._waiting.popleft()
            try:
                handler(what)
            except Exception as error:  # telemetry harms no session
                log.warning("telemetry_failed", session=self._session_id, exc_info=error)
            if not for_good and len(self._waiting) <= most and time.monotonic() > until:
                self._again("drain", 0, self._drain)
                break
        self.measures.take_times()
        if self._lines is not None:
            self._lines.flush()

    def _again(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        assert self._loop is not None
        self._timers[name] = self._loop.call_later(seconds, call)

    def _poll(self) -> None:
        assert self._usage is not None
        for backend in self._backends:
            for update in self._usage.read(self._session_id, backend):
                self.emit(update)
        self._again("poll", self._poll_interval, self._poll)

    def _checkpoint(self) -> None:
        if self._lines is not None:
            totals = {f"tasks_{name}": count for name, count in self.measures.totals().items()}
            self._lines.metrics({**totals, "task_duration_seconds": self.measures.durations()})
        if self._checkpoint_interval is not None and self._ended is None:
            self._again("checkpoint", self._checkpoint_interval, self._checkpoint)

    def _called(self, call: asyncio.Task[Any]) -> None:
        self._calls.discard(call)
        if not call.cancelled() and (error := call.exception()) is not None:
            log.warning("subscriber_failed", session=self._session_id, exc_info=error)

    # -- what it was -------------------------------------------------------------------------------------------------

    def read_metrics(self) -> Any:
        """Return the metrics as `opentelemetry.sdk.metrics.export.MetricsData`."""
        self._drain(for_good=True)
        return self.measures.read()

    def read_traces(self) -> tuple[ReadableSpan, ...]:
        """Return the spans that have ended, the latest 10,000 of them."""
        self._drain(for_good=True)
        return self.spans.read()

    def task_count(self) -> dict[str, int]:
        """Return how many tasks were submitted, run and have ended, by how they did."""
        self._drain(for_good=True)
        return self.measures.totals()

    def task_spans(self) -> list[dict[str, Any]]:
        """Return the latest tasks that have ended, as dicts."""
        found = []
        for span in self.read_traces():
            if span.name == "task":
                given = span.attributes or {}
                seconds = ((span.end_time or 0) - (span.start_time or 0)) / 1e9
                ids = {"trace_id": f"{span.context.trace_id:032x}", "span_id": f"{span.context.span_id:016x}"}
                shown = {key: given[key] for key in _SPAN if key in given}
                found.append({**shown, "duration_seconds": given.get("duration_seconds", seconds), **ids})
        return found

    def session_duration(self) -> float:
        """Return the seconds from the start to the end, or until now."""
        return (self._ended or time.time()) - self._started

    def summary(self) -> dict[str, Any]:
        """Return the counts of tasks, how long they ran, and the latest use of the machine, as plain dicts."""
        nodes = [
            {"backend": update.backend, "node_id": update.node_id, **{name: getattr(update, name) for name in _SHOWN}}
            for update in self.measures.nodes.values()
        ]
        return {
            "session_id": self._session_id,
            "tasks": self.task_count(),
            "duration": self.measures.durations(),
            "duration_seconds": self.session_duration(),
            "resources": nodes,
        }
