"""Spans of a session: itself, its batches and its tasks, made when they have ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import attrs
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags

from rhapsody.protocol.trace import Trace
from rhapsody.version import __version__

KEPT: Final = 10_000  # spans that can be read; older ones are dropped
_STATUS: Final = {"completed": StatusCode.OK, "failed": StatusCode.ERROR, "canceled": StatusCode.ERROR}


@attrs.define(eq=False)
class Done:
    """What a span that has ended is made of.

    Attributes:
        name: `task` or `batch`.
        uid: of the task; of a batch a name of its own.
        started: seconds since the epoch.
        ended: likewise.
        status: `completed`, `failed` or `canceled`; empty for a batch.
        problem: what went wrong.
        attributes: of the span.
        parent: None for the session's.
        links: uids of the spans that led to it.
        events: name, seconds since the epoch, attributes.
    """

    name: str
    uid: str
    started: float
    ended: float
    status: str = ""
    problem: str = ""
    attributes: Mapping[str, Any] = attrs.field(factory=dict)
    parent: SpanContext | None = None
    links: Sequence[str] = ()
    events: Sequence[tuple[str, float, Mapping[str, Any]]] = ()


class Spans(SpanProcessor):
    """Makes the spans of one session, and keeps the latest.

    Where nobody receives spans as they end, only what they are made of is kept, which costs a fraction of a span.

    Args:
        session: its uid.
        processors: receive the spans.
        resource: describes this program.
        on_span: called with each span that has ended; None for what makes spans later.
    """

    def __init__(
        self,
        session: str,
        processors: Sequence[SpanProcessor],
        resource: Resource,
        on_span: Callable[[ReadableSpan], None] | None = None,
    ) -> None:
        self._ids = _Ids()
        self._kept: deque[tuple[Any, ...] | ReadableSpan] = deque(maxlen=KEPT)
        self._at_once = bool(processors) or on_span is not None
        self._on_span = on_span
        self._reading: list[ReadableSpan] | None = None
        self._provider = TracerProvider(resource=resource, id_generator=self._ids)
        for processor in (self, *processors):
            self._provider.add_span_processor(processor)
        self.tracer = self._provider.get_tracer("rhapsody", __version__)
        self._session = self.tracer.start_span("session", attributes={"session_id": session, "backend": "rhapsody"})
        self.root = self._session.get_span_context()
        self.trace = Trace(f"{self.root.trace_id:032x}", f"{self.root.trace_flags:02x}")

    def add(self, *facts: Any) -> None:
        """Take a span that has ended: the first of the facts, called with the others, says what it is made of."""
        if self._at_once:
            self._make(facts[0](*facts[1:]))
        else:
            self._kept.append(facts)

    def read(self) -> tuple[ReadableSpan, ...]:
        """Return the spans that have ended, the latest 10,000 of them."""
        self._reading = spans = []
        try:
            for kept in list(self._kept):
                if isinstance(kept, tuple):
                    self._make(kept[0](*kept[1:]))
                else:
                    spans.append(kept)
        finally:
            self._reading = None
        return tuple(spans)

    def end(self, ended: float) -> None:
        """End the span of the session."""
        self._session.set_status(Status(StatusCode.OK))
        self._session.end(_ns(ended))

    def close(self) -> Callable[[], object]:
        """Return what exports the last spans, which may take a while."""
        return self._provider.shutdown

    @contextmanager
    def scope(self, name: str, attributes: Mapping[str, Any] | None) -> Iterator[None]:
        """Open a span that is the parent of what is submitted meanwhile."""
        here = trace.get_current_span().get_span_context()
        within = contexts.get_current()
        if not here.is_valid:
            within = trace.set_span_in_context(self._session)
        with self.tracer.start_as_current_span(name, within, attributes=attributes):
            yield

    def ids_of(self, uid: str) -> tuple[str, str]:
        """Return the identifiers of the trace and of a task's span; of the session's without a uid."""
        return self.trace.trace_id, self.trace.span_of(uid) if uid else f"{self.root.span_id:016x}"

    def _context_of(self, uid: str) -> SpanContext:
        flags = TraceFlags(self.root.trace_flags)
        return SpanContext(self.root.trace_id, int(self.trace.span_of(uid), 16), is_remote=False, trace_flags=flags)

    def _make(self, done: Done) -> None:
        """Make a span. One that the user's own span led to is a child of it, or linked where that has another trace."""
        parent, links = done.parent or self.root, [Link(self._context_of(uid)) for uid in done.links]
        if parent.trace_id != self.root.trace_id:
            links.append(Link(parent))
            parent = self.root
        within = trace.set_span_in_context(NonRecordingSpan(parent))
        self._ids.next = int(self.trace.span_of(done.uid), 16)
        span = self.tracer.start_span(
            done.name, within, attributes=done.attributes, links=links, start_time=_ns(done.started)
        )
        for name, at, attributes in done.events:
            span.add_event(name, attributes, _ns(at))
        if done.status:
            status = _STATUS[done.status]
            span.set_status(Status(status, done.problem if status is StatusCode.ERROR else None))
        span.end(_ns(done.ended))

    # -- SpanProcessor -----------------------------------------------------------------------------------------------

    def on_end(self, span: ReadableSpan) -> None:
        """Keep the span."""
        if self._reading is not None:
            self._reading.append(span)
            return
        self._kept.append(span)
        if self._on_span is not None:
            self._on_span(span)


class _Ids(IdGenerator):
    """Gives the next span the identifier that was chosen for it."""

    def __init__(self) -> None:
        self.next = 0
        self._random = RandomIdGenerator()

    def generate_span_id(self) -> int:
        chosen, self.next = self.next, 0
        return chosen or self._random.generate_span_id()

    def generate_trace_id(self) -> int:
        return self._random.generate_trace_id()


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
