"""The user's side of a persistent group of Dragon worker processes, fed and drained through Dragon queues.

Each worker has an inbox of its own, so it is known which unit is where: when a worker dies, the task that it ran
fails, what it had not begun is given back to be run elsewhere, and a new worker takes its place. All workers report
into one outbox, which one thread drains; a second thread waits for the deaths of workers, and a third puts into their
queues. None of them polls: each blocks until there is something to do, or for a second to see that it is still wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any, Final

from rhapsody.errors import (
    BackendLostError,
    BackendShutdownError,
    BackendStartError,
    SubmitError,
    TaskCanceledError,
    WorkerLostError,
)
from rhapsody.plugin import (
    BackendLost,
    CancelResult,
    ComputeTask,
    Event,
    EventChannel,
    Outcome,
    Returned,
    TaskBatch,
    TaskState,
)

from .deaths import deaths_anywhere, deaths_here, end_process
from .far import work
from .messages import PUT_DEADLINE, WAIT_SECONDS, Joiner, Kind, Message, destroy, let_be, new_queue, received, send
from .runtime import DragonRuntime
from .stopping import STUBBORN, Outgoing, Stopping
from .units import Place, Progress, Unit

#: What a start waits for, as the log says it.
WORKERS: Final = "the worker processes"
#: Seconds for the workers to be up (measured: 0.9 for two; they are Python processes that import Dragon).
WORKERS_DEADLINE: Final = 70.0
#: Seconds in which the workers leave by themselves at the end (measured: 0.3, and 2 where they have yet to come up;
#: many times that on a busy machine).
LEAVE_DEADLINE: Final = 20.0
#: Seconds in which the threads here do.
THREADS_DEADLINE: Final = 2.0
#: Seconds after which the start of a task on an idle worker is reported; its end, which says it all, may come before.
SOON: Final = 0.005
#: Workers of one place that may die before they are up, one after the other.
TRIES: Final = 3


class WorkerGroup:
    """Runs units on worker processes.

    Args:
        count: workers.
        name: of the backend, for messages.
        runtime: where they run; once it is lost, nothing of it is touched.
        session: uid of the session.
        events: where outcomes go.
        cwd: folder of the workers; None for the current one.
        policies: one for each node, on which the workers are placed in turn; empty for Dragon's own placement.
        changed: told how many workers are up, whenever that changes.
    """

    def __init__(
        self,
        count: int,
        *,
        name: str,
        runtime: DragonRuntime,
        session: str,
        events: EventChannel,
        cwd: str | None,
        policies: Sequence[Any],
        changed: Callable[[int], None],
    ) -> None:
        self.name = name
        self._runtime = runtime
        self._events = events
        self._cwd = cwd or "."
        self._changed = changed
        self._places = [Place(n, policies[n % len(policies)] if policies else None) for n in range(count)]
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)  # of workers, of requests, of the end
        self._requests = 0  # to Dragon, under way, for what `close` has to end
        self._closing = False
        self._outbox: Any = None
        self._joiner = Joiner()
        self._here = not policies
        self._progress = Progress(count, shared=self._here)
        self._outgoing: SimpleQueue[Outgoing | None] = SimpleQueue()
        self._stopping = Stopping(session, self._places, self._lock, self._outgoing.put)
        self._threads: list[threading.Thread] = []
        self._lost: Exception | None = None

    # -- the life of the group ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the workers and wait until all are up.

        Raises:
            BackendStartError: they did not come up, or are no longer wanted; `close` ends those that did.
        """
        with self._request() as is_wanted:
            if not is_wanted:
                raise BackendStartError("the Dragon workers were closed before they started")
            self._outbox = new_queue()
            for name, body in (("drain", self._drain), ("deaths", self._deaths), ("feed", self._feed)):
                thread = threading.Thread(target=body, name=f"rhapsody-dragon-{name}", daemon=True)
                self._threads.append(thread)
                thread.start()
        for place in self._places:
            with self._request() as is_wanted:
                if is_wanted:
                    place.inbox, place.control = new_queue(), new_queue()
                    self._start(place)
        with self._news:
            self._news.wait_for(self._is_settled, WORKERS_DEADLINE)
            up = self._up()
        if up < len(self._places):
            reason = self._why_lost() or ("closed" if self._closing else f"within {WORKERS_DEADLINE:g} seconds")
            raise BackendStartError(f"{up} of {len(self._places)} Dragon worker processes came up ({reason})")
        self._changed(up)

    def _is_settled(self) -> bool:
        return self._up() == len(self._places) or self._why_lost() is not None or self._closing

    def _why_lost(self) -> Exception | None:
        return self._lost or self._runtime.lost

    def _is_gone(self) -> bool:
        """Whether the runtime is: nothing more will be reported, and nothing of it may be touched."""
        return self._runtime.lost is not None

    @contextlib.contextmanager
    def _request(self) -> Iterator[bool]:
        """Ask Dragon for what `close` has to end, and therefore waits for; yields False where that is too late.

        No lock is held meanwhile: a runtime that dies never answers.
        """
        with self._news:
            is_wanted = not self._closing
            self._requests += is_wanted
        try:
            yield is_wanted
        finally:
            with self._news:
                self._requests -= is_wanted
                self._news.notify_all()

    def close(self) -> None:
        """End the workers, also those that are busy; bounded in time.

        Raises:
            BackendShutdownError: some of them could not be ended; all else is.
        """
        with self._news:
            if self._closing:
                return
            self._closing = True
            self._news.notify_all()
            self._news.wait_for(lambda: not self._requests or self._is_gone())
        self._outgoing.put(None)
        problems: list[str] = []
        if not self._is_gone():
            places = [place for place in self._places if place.process is not None]
            for place in places:
                self._ask_to_leave(place)
            start = time.monotonic()
            for place in places:
                until = start + (STUBBORN if place.is_busy else LEAVE_DEADLINE)
                problem = end_process(place.process, place.pid if self._here else 0, until - time.monotonic())
                problems += [f"worker {place.number} {problem}"] if problem else []
            problems += self._stop_threads()
        put_away = let_be if self._is_gone() else destroy
        for place in self._places:
            put_away(place.inbox, place.control)
        put_away(self._outbox)
        self._progress.close()
        if problems:
            raise BackendShutdownError(f"backend {self.name!r}: {'; '.join(problems)}")

    @staticmethod
    def _ask_to_leave(place: Place) -> None:
        """Tell a worker to leave, or to end itself if it is busy; both also once it is up.

        None is killed from outside at once: while it starts, leaves or reports it holds locks of Dragon's, for which
        everybody would wait in vain, the runtime included.
        """
        target, kind = (place.control, Kind.KILL) if place.is_busy else (place.inbox, Kind.STOP)
        try:
            send(target, place.number, 0, kind, timeout=1.0)
        except Exception:  # its queue is full or broken: it is killed later
            pass

    def _stop_threads(self) -> list[str]:
        """Let the threads end; returns what went wrong."""
        if not self._threads:
            return []
        problems = []
        try:
            send(self._outbox, 0, 0, Kind.STOP, timeout=THREADS_DEADLINE)
        except Exception as error:  # nobody takes anything any more, or a worker died with a lock of it
            problems.append(f"a queue could not be closed: {type(error).__name__}: {error}")
        for thread in self._threads:
            thread.join(THREADS_DEADLINE + WAIT_SECONDS)
        return problems

    def wake(self) -> None:
        """Look again at the runtime, which is gone."""
        with self._news:
            self._news.notify_all()

    def _start(self, place: Place) -> None:
        from dragon.native.process import Process

        process = Process(
            target=work,
            args=(place.number, place.inbox, place.control, self._outbox, self._progress.path, sys.path),
            cwd=self._cwd,
            stdout=Process.DEVNULL,
            stderr=Process.DEVNULL,
            policy=place.policy,
        )
        process.start()
        with self._lock:
            place.process = process
            place.pid, place.started_at = 0, time.monotonic()

    def _up(self) -> int:
        return sum(place.ready for place in self._places)

    # -- units go down -----------------------------------------------------------------------------------------------

    def submit(self, batch: TaskBatch, payload: bytes) -> None:
        """Give a unit to the worker that has the least to do; on the session's loop."""
        unit = Unit(batch)
        if not unit.left:
            return  # none of it could be encoded, which has been reported
        with self._lock:
            place = min(self._places, key=lambda place: (not place.ready, len(place.units)))
            place.units[batch.uid] = unit
            inbox = place.inbox
            is_first = len(place.units) == 1
        self._outgoing.put((place, inbox, Kind.RUN, batch.uid, payload))
        if is_first:
            asyncio.get_running_loop().call_later(SOON, self._tell_start, place)

    def _tell_start(self, place: Place) -> None:
        """Report, on the loop, what an idle worker has begun to run, unless it has ended meanwhile.

        Put before all that nobody has taken: the report of its end may be among that.
        """
        with self._lock:
            started = place.next_started()
        self._events.put_first(started)

    def _feed(self) -> None:
        """Put what goes to workers into their queues: that may wait for room, or for a lock that a worker holds."""
        while (item := self._outgoing.get()) is not None:
            place, target, kind, number, data = item
            try:
                send(target, place.number, number, kind, data, PUT_DEADLINE)
            except Exception as error:
                with self._lock:
                    # Where its worker has died meanwhile, the unit was given back already.
                    unit = place.units.pop(number, None) if kind is Kind.RUN and place.inbox is target else None
                if unit is not None:
                    problem = SubmitError(f"backend {self.name!r}: a unit could not be sent to a worker: {error}")
                    self._report([Outcome(uid, TaskState.FAILED, exception=problem) for uid in unit.left])

    async def cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Stop tasks that the workers hold; see `Stopping.cancel`."""
        return await self._stopping.cancel(tasks)

    # -- frames come up ----------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        try:
            for number, unit, kind, data in received(self._outbox, self._joiner, self._is_gone):
                self._take(self._places[number], unit, kind, data)
        except Exception as error:
            if not self._closing:
                self._lose(f"its results can no longer be read: {type(error).__name__}: {error}")

    def _take(self, place: Place, unit: int, kind: Kind, data: Message) -> None:
        if kind is Kind.FRAME:
            self._frame(place, unit, data)
        elif kind is Kind.END:
            self._end(place, unit)
        elif kind is Kind.LEFT_OUT:
            self._left_out(place, unit, bytes(data).decode())
        elif kind is Kind.READY:
            self._is_ready(place, *map(int, bytes(data).split()))
        elif kind is Kind.GONE:
            self._joiner.forget(place.number)
            self._gone(place, *json.loads(bytes(data)))

    def _frame(self, place: Place, uid: int, data: Message) -> None:
        unit = place.units.get(uid)
        if unit is None:
            return
        outcomes = unit.batch.decode(data)
        with self._lock:
            for outcome in outcomes:
                unit.left.pop(outcome.uid, None)
            if not unit.left:
                place.units.pop(uid, None)
            started = place.next_started()
        self._report([*outcomes, *started])

    def _end(self, place: Place, number: int) -> None:
        """Forget a unit that is over. Nothing is left of it, or its worker has kept an end to itself."""
        with self._lock:
            unit = place.units.pop(number, None)
        if unit is not None and unit.left:
            problem = WorkerLostError(f"backend {self.name!r}: a worker ended a unit without the end of this task")
            self._report([Outcome(uid, TaskState.FAILED, exception=problem) for uid in unit.left])

    def _report(self, events: Sequence[Event]) -> None:
        self._events.put(events)
        self._stopping.tell(events)

    def _left_out(self, place: Place, number: int, uid: str) -> None:
        with self._lock:
            unit = place.units.get(number)
            if unit is None or unit.left.pop(uid, None) is None:
                return
            unit.dropped.add(uid)
            if not unit.left:
                place.units.pop(number, None)
        self._report([Outcome(uid, TaskState.CANCELED, exception=_canceled(uid))])

    def _is_ready(self, place: Place, pid: int, parent: int) -> None:
        with self._news:
            place.ready, place.failures = True, 0
            place.pid, place.parent = pid, parent
            up = self._up()
            self._news.notify_all()
        self._changed(up)

    # -- workers die -------------------------------------------------------------------------------------------------

    def _deaths(self) -> None:
        """Replace workers that die, for the life of the group."""
        deaths = deaths_here if self._here else deaths_anywhere
        waits = deaths(self._places, lambda: self._closing or self._why_lost() is not None)
        try:
            for place, code in waits:
                self._replace(place, code)
        except Exception as error:
            if not self._closing and self._why_lost() is None:
                self._lose(f"its workers can no longer be watched: {type(error).__name__}: {error}")
        finally:
            waits.close()

    def _replace(self, place: Place, code: int) -> None:
        """Put a new worker in the place of a dead one; what the dead one held is judged by the draining thread."""
        old = (place.inbox, place.control)
        fresh = (new_queue(), new_queue())  # a death may have left the old ones locked
        with self._lock:
            place.failures += not place.ready
            place.ready = False
            place.process = None
            place.inbox, place.control = fresh
            held = list(place.units)  # later ones go to the successor
            up = self._up()
        # Through the outbox, so that what the worker reported before it died is read before this.
        done = self._progress.take(place.number)
        send(self._outbox, place.number, 0, Kind.GONE, json.dumps([code, held, done]).encode(), PUT_DEADLINE)
        if place.failures >= TRIES:
            self._lose(f"worker {place.number} died {TRIES} times before it was up, last with exit code {code}")
            return
        self._changed(up)
        try:
            with self._request() as is_wanted:
                if is_wanted:
                    self._start(place)
        except Exception as error:
            self._lose(f"a dead worker could not be replaced: {type(error).__name__}: {error}")
        destroy(*old)

    def _gone(self, place: Place, code: int, uids: Sequence[int], progress: tuple[int, int] | None) -> None:
        """Judge what a dead worker held: what it ran has failed or was stopped, the rest it had not begun."""
        events: list[Event] = []
        returned: list[str] = []
        with self._lock:
            for position, number in enumerate(uids):
                unit = place.units.pop(number, None)
                if unit is None:
                    continue
                begun: set[str] = set()
                if position == 0:  # of the first unit alone, for a worker runs one after the other
                    begun = unit.begun(None if progress is None else progress[1] if progress[0] == number else 0)
                for uid in unit.left:
                    if uid in self._stopping:
                        events.append(Outcome(uid, TaskState.CANCELED, exception=_canceled(uid)))
                    elif uid in begun:
                        error = WorkerLostError(
                            f"task {uid}: the worker process that ran it on backend {self.name!r} died "
                            f"({_death(code)}); whether it had any effect is unknown"
                        )
                        events.append(Outcome(uid, TaskState.FAILED, exception=error))
                    else:
                        returned.append(uid)
        if returned:
            events.append(Returned(returned))
        self._report(events)

    def _lose(self, why: str) -> None:
        with self._news:
            if self._why_lost() is not None:
                return
            self._lost = error = BackendLostError(f"backend {self.name!r}: {why}")
            self._news.notify_all()
        self._events.put([BackendLost(error)])


def _canceled(uid: str) -> TaskCanceledError:
    return TaskCanceledError(f"task {uid} was canceled while it ran")


def _death(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
