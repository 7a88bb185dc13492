"""The channel that carries events from any thread to the session's loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import attrs

from rhapsody.errors import InvalidBackendError, describe
from rhapsody.model.outcome import Outcome, Returned, Started
from rhapsody.seam.capacity import CapacityChanged

# One turn of the loop applies at most this many events, so that timers and other tasks are served in between:
# about 10 ms at 3 µs an event.
EVENTS_PER_TURN: Final = 4096
_CHECK: Final = 0.005  # seconds from taking events to a check for those that were put without a wake-up


@attrs.define(eq=False)
class BackendLost:
    """The engine is gone: all that it held and all that waits for it fails with this error.

    Attributes:
        error: why, in a sentence that names the backend.
    """

    error: Exception


Event = Started | Outcome | Returned | CapacityChanged | BackendLost


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
        self._check_pending = False
        self._rest_pending = False  # whether the next turn of the loop takes what one turn has left
        self._closed = False
        self._apply: Callable[[list[Event]], None] | None = None
        self._ended: asyncio.Future[None] | None = None  # made when somebody reads the channel

    def put(self, events: Sequence[Event], soon: bool = True) -> None:
        """Add events, in order. Never blocks; after the end they are dropped.

        Args:
            events: what happened.
            soon: wake the loop. Otherwise, if the loop was woken within the last milliseconds, it finds the events a
                few milliseconds later: for an engine that has gone on to other work, because a loop that is woken for
                every short task keeps the engine's threads from running.

        Raises:
            InvalidBackendError: not a list. The backend is lost, since it cannot be known what it had to report.
        """
        if type(events) is not list:
            self._refuse_other_than_lists(events)
        if self._closed:
            return
        # Lock-free, for one step on a deque is atomic: append before testing the flags here, clear a flag before
        # draining in `take`. An event that is appended while the loop drains either is drained or finds the flag clear.
        self._events.extend(events)
        if not soon:
            if self._check_pending:
                return
            self._has_pace = True
        if self._wake_pending:
            return
        self._wake_pending = True
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:  # the loop is closed: nobody will ever read this channel again
            self.close()

    def _refuse_other_than_lists(self, events: object) -> None:
        if isinstance(events, Sequence) and not isinstance(events, str | bytes):
            return
        error = InvalidBackendError(
            f"events.put takes a list of events, not {describe(events)}: context.events.put([Outcome(...)])"
        )
        self.put([BackendLost(error)])  # an engine's thread may swallow what is raised
        raise error

    def put_first(self, events: Sequence[Event]) -> None:
        """Add events before all that have not been taken; on the loop's thread only."""
        if not self._closed:
            self._events.extendleft(reversed(events))
            self._loop.call_soon(self._wake)

    def close(self) -> None:
        """End the channel: its reader stops after the events that are in it."""
        self._closed = True
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:  # the loop is closed, and its reader with it
            self._events.clear()

    def take(self) -> list[Event]:
        """Take what has arrived, at most `EVENTS_PER_TURN` events. On the loop's thread, as is `serve`."""
        events = self._events
        self._wake_pending = False  # before the events are read: see `put`
        taken = [events.popleft() for _ in range(min(len(events), EVENTS_PER_TURN))]
        if taken and self._has_pace and not self._check_pending:
            self._check_pending, self._has_pace = True, False
            self._loop.call_later(_CHECK, self._check)
        return taken

    def _check(self) -> None:
        self._check_pending = False
        if self._events:
            self._has_pace = True
            self._wake()

    def serve(self, apply: Callable[[list[Event]], None]) -> asyncio.Future[None]:
        """Call a function with what arrives, a list at a time; it is cleared afterwards.

        A callback of the loop, and no coroutine: to wake one would take another turn of the loop for each event.

        Returns:
            Done when the channel is closed and empty; or has the exception that `apply` raised.
        """
        self._apply, self._ended = apply, self._loop.create_future()
        self._loop.call_soon(self._wake)
        return self._ended

    def _wake(self) -> None:
        ended = self._ended
        if ended is None or ended.done() or self._rest_pending:
            return
        assert self._apply is not None
        taken = self.take()
        try:
            if taken:
                self._apply(taken)
        except Exception as error:
            ended.set_exception(error)
            return
        taken.clear()  # what the events hold is the tasks' now
        if self._events:  # between two lists, whoever else waits for the loop has a turn
            self._rest_pending = True
            self._loop.call_soon(self._take_rest)
        elif self._closed and not ended.done():
            ended.set_result(None)

    def _take_rest(self) -> None:
        self._rest_pending = False
        self._wake()
