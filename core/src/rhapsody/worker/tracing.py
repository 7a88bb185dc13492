"""Runs a function within the trace of its task, where OpenTelemetry is installed; it is not imported otherwise."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from rhapsody.protocol.trace import Trace


def traced(function: Callable[..., Any], trace: Trace, uid: str) -> Callable[..., Any]:
    """Return the function, whose spans are children of its task's.

    The call sets a context variable, and leaves it: `run_function` calls in a copy of the context.
    """
    enter = _enter()
    if enter is None:
        return function

    def call(*args: Any, **kwargs: Any) -> Any:
        enter(trace, uid)
        return function(*args, **kwargs)

    return call


@functools.cache
def _enter() -> Callable[[Trace, str], None] | None:
    """Return what makes the span of a task the current one; None where OpenTelemetry is not installed."""
    try:
        contexts: Any = importlib.import_module("opentelemetry.context")
        spans: Any = importlib.import_module("opentelemetry.trace")
    except ImportError:
        return None

    class TaskSpan(spans.NonRecordingSpan):  # type: ignore[misc]  # its class is known when it is loaded
        """The span of a task, seen from where the task runs; its identifier is worked out for those who ask."""

        def __init__(self, trace: Trace, uid: str) -> None:
            self._trace, self._uid = trace, uid

        def get_span_context(self) -> Any:
            trace_id, flags = self._trace
            numbers = int(trace_id, 16), int(self._trace.span_of(self._uid), 16)
            return spans.SpanContext(*numbers, is_remote=True, trace_flags=spans.TraceFlags(int(flags, 16)))

    def enter(trace: Trace, uid: str) -> None:
        contexts.attach(spans.set_span_in_context(TaskSpan(trace, uid)))

    return enter
