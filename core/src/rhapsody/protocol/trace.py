"""The trace that tasks belong to where their session has telemetry, so that workers go on with it: W3C Trace Context.

The identifier of a task's span follows from that of its trace and the task's uid, so that both ends know it and nothing
travels for each task.
"""

from __future__ import annotations

from contextvars import ContextVar
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from rhapsody.model.task import ComputeTask

TRACE_VARIABLE: Final = "TRACEPARENT"  # as OpenTelemetry names it where variables of the environment carry a trace


class Trace(NamedTuple):
    """The trace of a session.

    Attributes:
        trace_id: 32 hexadecimal digits.
        flags: two of them; 01 where the trace is recorded.
    """

    trace_id: str
    flags: str = "01"

    def parent_of(self, uid: str) -> str:
        """Return the value of `traceparent` for what a task does."""
        return f"00-{self.trace_id}-{self.span_of(uid)}-{self.flags}"

    def span_of(self, uid: str) -> str:
        """Return the identifier of a task's span, 16 hexadecimal digits."""
        return blake2b(uid.encode(), digest_size=8, key=self.trace_id.encode()).hexdigest()


#: The session's uid and its trace, in the context of the submit, which each task keeps.
TRACE: Final[ContextVar[tuple[str, Trace] | None]] = ContextVar("rhapsody_trace", default=None)


def trace_of(task: ComputeTask) -> Trace | None:
    """Return the trace of the session that has accepted a task; None where it has no telemetry."""
    found = None if task.context is None else task.context.get(TRACE)
    return found[1] if found is not None and found[0] == task.session else None


def trace_environment(task: ComputeTask) -> dict[str, str]:
    """Return the variable by which what a task runs goes on with its trace; nothing where there is none."""
    trace = trace_of(task)
    return {} if trace is None else {TRACE_VARIABLE: trace.parent_of(task.uid)}
