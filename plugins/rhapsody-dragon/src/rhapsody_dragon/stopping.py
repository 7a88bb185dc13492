"""Tasks of the worker group that are being stopped, and who waits for their ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from rhapsody.plugin import Event, Outcome, TaskState

Ends = dict[str, asyncio.Future[TaskState]]


class Stopping:
    """Resolves futures with the states in which tasks end; told of them from any thread."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, list[asyncio.Future[TaskState]]] = defaultdict(list)

    def __contains__(self, uid: str) -> bool:
        """Whether somebody stops this task."""
        return uid in self._waiting

    @contextlib.contextmanager
    def ends_of(self, uids: Iterable[str]) -> Iterator[Ends]:
        """Stop tasks, inside this block; on the loop. Several may stop the same task."""
        loop = asyncio.get_running_loop()
        ends: Ends = {uid: loop.create_future() for uid in uids}
        for uid, end in ends.items():
            self._waiting[uid].append(end)
        try:
            yield ends
        finally:
            for uid, end in ends.items():
                self._waiting[uid].remove(end)
                if not self._waiting[uid]:
                    del self._waiting[uid]

    def tell(self, events: Sequence[Event]) -> None:
        """Take in what has been reported."""
        if not self._waiting:
            return
        for event in events:
            if isinstance(event, Outcome):
                for end in tuple(self._waiting.get(event.uid, ())):
                    _resolve(end, event.state)


def _resolve(end: asyncio.Future[TaskState], state: TaskState) -> None:
    def resolve() -> None:
        if not end.done():
            end.set_result(state)

    with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
        end.get_loop().call_soon_threadsafe(resolve)
