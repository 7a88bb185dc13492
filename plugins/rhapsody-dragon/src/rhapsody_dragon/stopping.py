"""Stopping tasks that the workers of a group hold: asking the workers to, and waiting for what becomes of the tasks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from rhapsody.plugin import CancelResult, ComputeTask, Event, Outcome, TaskState

from .far import name_task
from .messages import Kind
from .units import Place, Unit

#: Seconds after which a worker that did not stop its task when asked is killed from outside.
STUBBORN: Final = 4.0

#: A message for a worker: its place, the queue, and then as `messages.send` has them: kind, number of the unit, data.
Outgoing = tuple[Place, Any, Kind, int, bytes]
#: A task that a worker runs: where, the number of its unit, the unit, the task.
Running = tuple[Place, int, Unit, ComputeTask]
#: One that waits at a worker: where, the number of its unit, its uid.
Waiting = tuple[Place, int, str]
#: By uid, in which state it ends.
Ends = dict[str, asyncio.Future[TaskState]]


class Stopping:
    """Stops tasks, and knows which are being stopped.

    Args:
        session: uid of the session.
        places: the workers, and what they hold.
        lock: held while what they hold is looked at.
        put: hands a message to the thread that sends it.
    """

    def __init__(
        self, session: str, places: Sequence[Place], lock: threading.Lock, put: Callable[[Outgoing], None]
    ) -> None:
        self._session = session
        self._places = places
        self._lock = lock
        self._put = put
        self._waiting: defaultdict[str, list[asyncio.Future[TaskState]]] = defaultdict(list)

    def __contains__(self, uid: str) -> bool:
        """Whether somebody stops this task."""
        return uid in self._waiting

    def tell(self, events: Sequence[Event]) -> None:
        """Take in what has been reported, from any thread."""
        if not self._waiting:
            return
        for event in events:
            if isinstance(event, Outcome):
                for end in tuple(self._waiting.get(event.uid, ())):
                    _resolve(end, event.state)

    async def cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Stop tasks that workers hold. Several may stop the same task.

        A program gets SIGTERM, and SIGKILL after a grace. A function cannot be interrupted: its worker is ended, and
        replaced. A task that its worker has not begun is left out.
        """
        uids = {task.uid for task in tasks}
        results = dict.fromkeys(uids, CancelResult.TOO_LATE)
        with contextlib.ExitStack() as stack:
            with self._lock:
                running, waiting = self._find(uids)
                stopped = {task.uid for _, _, _, task in running}
                ends = stack.enter_context(self._ends_of(stopped | {uid for _, _, uid in waiting}))
            # What waits first: the end of what runs would begin it.
            for place, number, uid in waiting:
                self._put((place, place.control, Kind.SKIP, number, uid.encode()))
            for place, number, _, task in running:
                self._stop(place, number, task)
            if ends:
                _, late = await asyncio.wait(ends.values(), timeout=STUBBORN)
                if late:
                    await asyncio.to_thread(self._kill_stubborn, running)
                    await asyncio.wait(late, timeout=STUBBORN)
        for uid, end in ends.items():
            if not end.done():
                results[uid] = CancelResult.CANNOT_STOP
            elif end.result() is TaskState.CANCELED:
                results[uid] = CancelResult.STOPPED if uid in stopped else CancelResult.NEVER_STARTED
        return results

    def _find(self, uids: set[str]) -> tuple[list[Running], list[Waiting]]:
        """Find tasks among what the workers hold; under the lock."""
        running: list[Running] = []
        waiting: list[Waiting] = []
        for place in self._places:
            for position, (number, unit) in enumerate(place.units.items()):
                current = unit.running() if position == 0 else None  # a worker runs its first unit
                for uid in uids & unit.left.keys():
                    if current is not None and uid == current.uid:
                        running.append((place, number, unit, current))
                    else:
                        waiting.append((place, number, uid))
        return running, waiting

    @contextlib.contextmanager
    def _ends_of(self, uids: Iterable[str]) -> Iterator[Ends]:
        """Wait for the ends of tasks that are stopped, inside this block; on the loop."""
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

    def _stop(self, place: Place, number: int, task: ComputeTask) -> None:
        if task.function is None:
            self._put((place, place.control, Kind.TERMINATE, number, name_task(self._session, task.uid)))
        else:
            self._put((place, place.control, Kind.KILL, number, task.uid.encode()))

    def _kill_stubborn(self, running: Sequence[Running]) -> None:
        for place, number, unit, task in running:
            with self._lock:
                process = place.process if place.units.get(number) is unit and unit.running() is task else None
            if process is not None:
                process.kill()


def _resolve(end: asyncio.Future[TaskState], state: TaskState) -> None:
    def resolve() -> None:
        if not end.done():
            end.set_result(state)

    with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
        end.get_loop().call_soon_threadsafe(resolve)
