"""The processes of a worker group: started, watched, replaced when they die, and ended; and the queues around them.

One thread drains the outbox into which all workers report, a second waits for their exits, and a third puts into
their queues. None of them polls: each blocks until there is something to do, or for seconds to see that it is still
wanted. A single task is put by whoever has it: a change of threads would cost it as much as the put.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Final, Protocol

from rhapsody.errors import BackendLostError, BackendShutdownError, BackendStartError
from rhapsody.plugin import BackendLost

from .exit_watch import end_process, exits_by_dragon, exits_by_pidfd, is_alive
from .messages import PART, PUT_DEADLINE, Joiner, Kind, Message, destroy, let_be, new_queue, received, send
from .processors import Site, policy_of
from .task_options import ENVIRONMENT
from .worker_main import WorkerRecord, work

#: Seconds for the workers to be up (measured: 0.9 for two; they are Python processes that import Dragon).
WORKERS_DEADLINE: Final = 70.0
#: Seconds in which a busy worker ends itself, before it is killed from outside.
BUSY_DEADLINE: Final = 4.0
#: Seconds in which the workers leave by themselves at the end (measured: 0.3, and 2 where they have yet to come up;
#: many times that on a busy machine).
LEAVE_DEADLINE: Final = 20.0
#: Seconds in which the threads here do.
THREADS_DEADLINE: Final = 3.0
#: Seconds after which Dragon is asked about a worker that has not reported for duty.
LATE_SECONDS: Final = 3.0
#: Seconds after its last batch until a worker is known to wait for the next.
IDLE_SECONDS: Final = 0.002
#: Workers of one number that may die before they are up, one after the other.
TRIES: Final = 3


@dataclass(eq=False)
class Worker:
    """One worker, and whoever follows it when it dies."""

    number: int
    node: int
    policy: Any
    inbox: Any = None
    control: Any = None
    process: Any = None  # as Dragon knows it
    pid: int = 0  # known once it is ready, as is the next
    parent: int = 0
    started_at: float = 0.0
    ready: bool = False
    failures: int = 0
    held: Any = None  # the batch that it has
    idle_since: float = 0.0

    @property
    def is_late(self) -> bool:
        """Whether it may have died before it could say its number."""
        return self.process is not None and not self.pid and time.monotonic() - self.started_at > LATE_SECONDS

    @property
    def is_idle(self) -> bool:
        """Whether it is up and has nothing to do, so that it reads its inbox."""
        return self.ready and self.held is None


class Listener(Protocol):
    """Takes what the workers do: in the draining thread, in the order in which they report it, but for the last two.

    A message about a batch; that a worker has died, whose last message was taken before; how many workers are up; that
    a batch could not be sent.
    """

    def take(self, worker: Worker, batch: int, kind: Kind, data: Message) -> None: ...  # noqa: D102 - see above
    def worker_lost(self, worker: Worker, code: int) -> None: ...  # noqa: D102 - see above
    def count_changed(self, up: int) -> None: ...  # noqa: D102 - see above
    def not_sent(self, worker: Worker, batch: int, error: Exception) -> None: ...  # noqa: D102 - see above


class WorkerProcesses:
    """The processes of a worker group, spread over the nodes."""

    def __init__(self, count: int, site: Site, listener: Listener) -> None:
        self._context, self._runtime, processors, self._folder = site
        self._here = processors.is_one_node
        homes = [number for number, node in enumerate(processors.nodes) if node.processors]
        nodes = [homes[number % len(homes)] for number in range(count)]
        self.workers = [
            Worker(number, node, policy_of(processors.nodes[node], (), self._here)) for number, node in enumerate(nodes)
        ]
        self.lock = threading.Lock()  # of the workers
        self.closing = False
        self.record = WorkerRecord(count) if self._here else None  # of what they have begun and ended
        self._listener = listener
        self._news = threading.Condition(self.lock)  # of workers, of requests, of the end
        self._requests = 0  # to Dragon, under way, for what `close` has to end
        self._outbox: Any = None
        self._joiner = Joiner()
        self._outgoing: SimpleQueue[tuple[Worker, Any, int, Kind, bytes] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lost: Exception | None = None

    def start(self) -> None:
        """Start the workers and wait until all are up.

        Raises:
            BackendStartError: they did not come up, or are no longer wanted; `close` ends those that did.
        """
        with self._request() as is_wanted:
            if not is_wanted:
                raise BackendStartError("the Dragon workers were closed before they started")
            self._outbox = new_queue()
            for name, body in (("drain", self._drain), ("exits", self._watch), ("feed", self._feed)):
                thread = threading.Thread(target=body, name=f"rhapsody-dragon-{name}", daemon=True)
                self._threads.append(thread)
                thread.start()
        for worker in self.workers:
            with self._request() as is_wanted:
                if is_wanted:
                    worker.inbox, worker.control = new_queue(), new_queue()
                    self._start(worker)
        with self._news:
            self._news.wait_for(self._is_settled, WORKERS_DEADLINE)
            up = self._up()
        if up < len(self.workers):
            reason = self._why_lost() or ("closed" if self.closing else f"within {WORKERS_DEADLINE:g} seconds")
            raise BackendStartError(f"{up} of {len(self.workers)} Dragon worker processes came up ({reason})")

    def _is_settled(self) -> bool:
        return self._up() == len(self.workers) or self._why_lost() is not None or self.closing

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
            is_wanted = not self.closing
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
            if self.closing:
                return
            self.closing = True
            self._news.notify_all()
            self._news.wait_for(lambda: not self._requests or self._is_gone())
        self._outgoing.put(None)
        problems: list[str] = []
        if not self._is_gone():
            problems = [*self._end_workers(), *self._stop_threads()]
        put_away = let_be if self._is_gone() else destroy
        for worker in self.workers:
            put_away(worker.inbox, worker.control)
        put_away(self._outbox)
        if self.record is not None:
            self.record.close()
        if problems:
            raise BackendShutdownError(f"backend {self._context.backend!r}: {'; '.join(problems)}")

    def _end_workers(self) -> list[str]:
        """Ask workers to leave, or to end themselves where they are busy; returns what went wrong.

        None is killed from outside at once: while it starts, leaves or reports it holds locks of Dragon's, for which
        everybody would wait in vain, the runtime included.
        """
        workers = [worker for worker in self.workers if worker.process is not None]
        busy = [worker for worker in workers if worker.ready and worker.held is not None]
        for worker in workers:
            target, kind = (worker.control, Kind.DIE) if worker in busy else (worker.inbox, Kind.STOP)
            with contextlib.suppress(Exception):  # its queue is full or broken: it is killed later
                send(target, worker.number, 0, kind, timeout=1.0)
        problems: list[str] = []
        start = time.monotonic()
        for worker in workers:
            until = start + (BUSY_DEADLINE if worker in busy else LEAVE_DEADLINE)
            problem = end_process(worker.process, worker.pid if self._here else 0, until - time.monotonic())
            problems += [f"worker {worker.number} {problem}"] if problem else []
        return problems

    def _stop_threads(self) -> list[str]:
        """Let the threads end; returns what went wrong."""
        problems = self._stop_drain()
        for thread in self._threads:
            thread.join(THREADS_DEADLINE)
        return problems

    def _stop_drain(self) -> list[str]:
        try:
            if self._outbox is not None:
                send(self._outbox, 0, 0, Kind.STOP, timeout=THREADS_DEADLINE)
        except Exception as error:  # nobody takes anything any more, or a worker died with a lock of it
            return [f"a queue could not be closed: {type(error).__name__}: {error}"]
        return []

    def wake(self) -> None:
        """Check the runtime again, which is gone; also where the draining thread waits."""
        with self._news:
            self._news.notify_all()
        # In a thread that nobody waits for: one of Dragon's processes may have died with a lock of the queue.
        threading.Thread(target=self._stop_drain, name="rhapsody-dragon-wake", daemon=True).start()

    def _start(self, worker: Worker) -> None:
        from dragon.native.process import Process

        record = None if self.record is None else self.record.paths
        process = Process(
            target=work,
            args=(worker.number, worker.inbox, worker.control, self._outbox, record, len(self.workers), sys.path),
            cwd=self._folder,
            env=ENVIRONMENT,
            stdout=Process.DEVNULL,
            stderr=Process.DEVNULL,
            policy=worker.policy,
        )
        process.start()
        with self.lock:
            worker.process = process
            worker.pid, worker.started_at = 0, time.monotonic()

    def _up(self) -> int:
        return sum(worker.ready for worker in self.workers)

    def put(self, worker: Worker, target: Any, batch: int, kind: Kind, data: bytes) -> None:
        """Put a message for a worker into its queue; where that may take a while, by a thread.

        A worker that has just ended something, or died, may have the lock of its queue. One that waits has not.
        """
        if time.monotonic() - worker.idle_since > IDLE_SECONDS and len(data) < PART // 2 and self._is_alive(worker):
            with contextlib.suppress(Exception):  # there is no room now, or no memory
                send(target, worker.number, batch, kind, data, timeout=0)
                return
        self._outgoing.put((worker, target, batch, kind, data))

    def _is_alive(self, worker: Worker) -> bool:
        return not self._here or (worker.pid != 0 and is_alive(worker.pid))

    def _feed(self) -> None:
        while (item := self._outgoing.get()) is not None:
            worker, target, batch, kind, data = item
            try:
                send(target, worker.number, batch, kind, data, PUT_DEADLINE)
            except Exception as error:
                if kind is Kind.RUN and worker.inbox is target:  # otherwise its worker has died: it is given back
                    self._listener.not_sent(worker, batch, error)

    def _drain(self) -> None:
        try:
            for number, batch, kind, data in received(self._outbox, self._joiner, self._is_gone):
                worker = self.workers[number]
                if kind is Kind.READY:
                    pid, parent, core = json.loads(bytes(data))
                    with self._news:
                        worker.ready, worker.failures = True, 0
                        worker.pid, worker.parent = pid, parent
                        up = self._up()
                        self._news.notify_all()
                    self._listener.count_changed(up)
                    self._context.compare_core(core, "on its workers")
                elif kind is Kind.GONE:
                    self._joiner.forget(number)
                    self._listener.worker_lost(worker, json.loads(bytes(data)))
                else:
                    self._listener.take(worker, batch, kind, data)
        except Exception as error:
            if not self.closing:
                self._lose(f"its results can no longer be read: {type(error).__name__}: {error}")

    def _watch(self) -> None:
        """Replace workers that die, for the life of the group."""
        watch = exits_by_pidfd if self._here else exits_by_dragon
        waits = watch(self.workers, lambda: self.closing or self._why_lost() is not None)
        try:
            for worker, code in waits:
                self._replace(worker, code)
        except Exception as error:
            if not self.closing and self._why_lost() is None:
                self._lose(f"its workers can no longer be watched: {type(error).__name__}: {error}")
        finally:
            waits.close()

    def _replace(self, worker: Worker, code: int) -> None:
        """Put a new worker in the place of a dead one; what the dead one held is judged by the draining thread."""
        old = (worker.inbox, worker.control)
        fresh = (new_queue(), new_queue())  # the dead one may have left the old ones locked
        with self.lock:
            worker.failures += not worker.ready
            worker.ready = False
            worker.process = None
            worker.inbox, worker.control = fresh
            up = self._up()
        # Through the outbox, so that what the worker reported before it died is read before this.
        send(self._outbox, worker.number, 0, Kind.GONE, json.dumps(code).encode(), PUT_DEADLINE)
        if worker.failures >= TRIES:
            self._lose(f"worker {worker.number} died {TRIES} times before it was up, last with exit code {code}")
            return
        self._listener.count_changed(up)
        try:
            with self._request() as is_wanted:
                if is_wanted:
                    self._start(worker)
        except Exception as error:
            self._lose(f"a dead worker could not be replaced: {type(error).__name__}: {error}")
        destroy(*old)

    def _lose(self, why: str) -> None:
        with self._news:
            if self._why_lost() is not None:
                return
            self._lost = error = BackendLostError(f"backend {self._context.backend!r}: {why}")
            self._news.notify_all()
        self._context.events.put([BackendLost(error)])
