"""What a backend reports, and the channel that carries it from any thread to the session's loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from typing import Any, Final

import attrs

from .states import TaskState

# One turn of the loop applies at most this many events, so that timers and other tasks are served in between:
# about 10 ms at 3 µs an event.
EVENTS_PER_TURN: Final = 4096
_LOOK: Final = 0.005  # seconds from taking events to a look for those of which nobody has told


@attrs.define(eq=False)
class Started:
    """A worker began to run the task.

    Attributes:
        uid: the task.
        at: seconds since the epoch.
        ran_on: host and process, where known.
    """

    uid: str
    at: float
    ran_on: str | None = None


@attrs.define(eq=False)
class Outcome:
    """How one task ended; reported exactly once for each task that a backend holds.

    Attributes:
        uid: the task.
        state: DONE, FAILED or CANCELED.
        return_value: of a function.
        exception: why it failed; a FAILED outcome must have one.
        stdout, stderr, exit_code, stdout_path, stderr_path: of an executable.
        started_at, ended_at: seconds since the epoch, where known.
        ran_on: host and process, where known.
        attempt: counts the times that the task was started, where an engine starts it again by itself.
    """

    uid: str
    state: TaskState
    return_value: Any = None
    exception: BaseException | None = None
    stdout: str | None = None
    stderr: str | None = None
    exit_code: int | None = None
    stdout_path: str | None = None
    stderr_path: str | None = None
    started_at: float | None = None
    ended_at: float | None = None
    ran_on: str | None = None
    attempt: int | None = None


@attrs.define(eq=False)
class Returned:
    """These tasks never started, and will not: they go back to the backlog to be run again elsewhere.

    Attributes:
        uids: the tasks.
    """

    uids: Sequence[str]


@attrs.frozen
class Capacity:
    """How much an engine runs, and how much of it may be in its hands.

    Attributes:
        slots: tasks that run at the same time.
        units: batches in flight; None for no limit of its own. More than `slots` keeps a spare ready at the engine.
        tasks: tasks in flight; None for no limit of its own.
    """

    slots: int = attrs.field(validator=attrs.validators.ge(0))
    units: int | None = None
    tasks: int | None = None


@attrs.define(eq=False)
class CapacityChanged:
    """The engine grew or shrank.

    Attributes:
        capacity: what holds from now on.
    """

    capacity: Capacity


@attrs.define(eq=False)
class BackendLost:
    """The engine is gone: all that it held and all that waits for it fails with this error.

    Attributes:
        error: why, in a sentence that names the backend.
    """

    error: Exception


Event = Started | Outcome | Returned | CapacityChanged | BackendLost


class CancelResult(StrEnum):
    """What became of one task that was asked to stop.

    NEVER_STARTED: it waited, and will never run. STOPPED: it ran, and was stopped. TOO_LATE: it had ended before.
    CANNOT_STOP: it runs where nothing can stop it, and keeps its real end.
    """

    NEVER_STARTED = "NEVER_STARTED"
    STOPPED = "STOPPED"
    TOO_LATE = "TOO_LATE"
    CANNOT_STOP = "CANNOT_STOP"


class EventChannel:
    """Carries events from engine threads to the loop.

    `put` may be called from any thread, at any time, also after the loop or the channel is closed. However many
    events arrive, at most one wake-up of the loop is pending.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: deque[Event] = deque()
        self._wake_pending = False
        self._has_pace = False  # whether somebody puts events at a pace for which the loop need not be woken each time
        self._look_pending = False
        self._closed = False
        self._arrived = asyncio.Event()

    def put(self, events: Sequence[Event], soon: bool = True) -> None:
        """Add events, in order. Never blocks and never raises; after the end they are dropped.

        Without a lock: each step on the deque is one step for every thread. Events are added before the look at the
        marks, and whoever clears a mark does so before it reads the events, so none stays behind unnoticed.

        Args:
            events: what happened.
            soon: wake the loop. Otherwise, if the loop was woken within the last milliseconds, it finds the events a
                few milliseconds later: for an engine that has gone on to other work, because a loop that is woken for
                every short task keeps the engine's threads from running.
        """
        if self._closed:
            return
        self._events.extend(events)
        if not soon:
            if self._look_pending:
                return
            self._has_pace = True
        if self._wake_pending:
            return
        self._wake_pending = True
        try:
            self._loop.call_soon_threadsafe(self._arrived.set)
        except RuntimeError:  # the loop is closed: nobody will ever read this channel again
            self.close()

    def put_first(self, events: Sequence[Event]) -> None:
        """Add events before all that have not been taken; on the loop's thread only."""
        if not self._closed:
            self._events.extendleft(reversed(events))
            self._arrived.set()

    def close(self) -> None:
        """End the channel: its reader stops after the events that are in it."""
        self._closed = True
        try:
            self._loop.call_soon_threadsafe(self._arrived.set)
        except RuntimeError:  # the loop is closed, and its reader with it
            self._events.clear()

    def take(self) -> list[Event]:
        """Take what has arrived, at most `EVENTS_PER_TURN` events. On the loop's thread, as is `stream`."""
        events = self._events
        self._wake_pending = False
        if not self._closed:  # once closed, there is nothing to wait for
            self._arrived.clear()
        taken = [events.popleft() for _ in range(min(len(events), EVENTS_PER_TURN))]
        if events:
            self._arrived.set()
        if taken and self._has_pace and not self._look_pending:
            self._look_pending, self._has_pace = True, False
            self._loop.call_later(_LOOK, self._look)
        return taken

    def _look(self) -> None:
        self._look_pending = False
        if self._events:
            self._has_pace = True
            self._arrived.set()

    async def stream(self) -> AsyncIterator[list[Event]]:
        """Yield what arrives, a list at a time, until the channel is closed and empty."""
        while True:
            await self._arrived.wait()
            taken = self.take()
            if taken:
                yield taken
                if self._arrived.is_set():  # between two lists, whoever else waits for the loop has a turn
                    await asyncio.sleep(0)
            elif self._closed:
                return
