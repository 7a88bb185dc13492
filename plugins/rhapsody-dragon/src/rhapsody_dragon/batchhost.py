"""One Dragon Batch as the user's side sees it: a process inside the runtime (`far_batch.py`), and Batch's workers."""

from __future__ import annotations

import pickle
import tempfile
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from .deaths import KILL_DEADLINE, deaths_anywhere, deaths_here, end_process
from .far_batch import host
from .local import end, wait_for_end
from .messages import PUT_DEADLINE, WAIT_SECONDS, Joiner, Kind, Message, destroy, let_be, new_queue, received, send
from .runtime import DragonRuntime
from .units import Place

#: Seconds for Batch to be up (measured: 7 on two cores, over 60 on busy ones with another Batch beside it).
BATCH_DEADLINE: Final = 150.0
#: Seconds for Batch to leave in order, before its process is killed (measured: 3, over 6 beside another Batch that
#: starts). Batch's managers and workers would be left behind then, until the runtime ends.
LEAVE_DEADLINE: Final = 20.0
#: Seconds for it to do so where it is not up yet: killed while it starts, it may hold a lock, for which Dragon's
#: services would wait in vain.
UNBORN_DEADLINE: Final = 60.0
#: Seconds that `close` takes at most, which kills what does not leave.
CLOSE_DEADLINE: Final = UNBORN_DEADLINE + KILL_DEADLINE + 5.0
#: The number of a worker of which nothing else is known.
_UNKNOWN: Final = -1


class Client(Protocol):
    """A backend that uses a Batch, as the Batch sees it; called in threads."""

    def holds(self, unit: int) -> bool:
        """Whether a unit is this backend's."""

    def take(self, host: BatchHost, unit: int, kind: Kind, data: Message) -> None:
        """Take a message about a unit of its own, or about none that anybody holds.

        GONE tells that a worker has died, whose last message was taken before; its unit is the number that
        `worker_of` gave.
        """

    def lose(self, why: str) -> None:
        """Batch can no longer be used."""


class BatchHost:
    """Starts a Batch, and exchanges messages with it; all methods may be called from any thread.

    Backends of one runtime that want the same Batch share it: two beside each other keep Dragon's services (0.15) from
    answering.

    Args:
        arguments: of `far_batch.host`, after its queues.
        runtime: where it runs.
        home: a folder in which Batch may leave its file, in one of its own.
        policy: where its process runs; None for Dragon's own placement.
        here: whether all processes are on this node.
        log: of the backend that starts it.
    """

    def __init__(
        self,
        arguments: Sequence[Any],
        *,
        runtime: DragonRuntime,
        home: str | Path,
        policy: Any,
        here: bool,
        log: Any,
    ) -> None:
        self._arguments = arguments
        self._runtime = runtime
        self._scratch = tempfile.TemporaryDirectory(
            prefix="rhapsody-dragon-batch-", dir=home, ignore_cleanup_errors=True
        )
        self._policy = policy
        self._here = here
        self._log = log
        self._clients: list[Client] = []
        self._stuck: set[Client] = set()  # those that expect nothing of it any more
        self._ended = threading.Event()
        self._up = threading.Event()
        self._problem: str | None = None
        self._inbox: Any = None
        self._outbox: Any = None
        self._process: Any = None
        self._pid = 0  # once it is known
        self._threads: list[threading.Thread] = []
        self._answers: dict[bytes, tuple[Any, int]] = {}  # by claim: the queue on which the worker waits, and its place
        self._places: list[Place] = []
        self._asked = False  # for its process
        self._answered = threading.Event()  # there is one, or there was a problem
        self._closing = False
        self._dead = False  # its process, by itself

    # -- its life ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start the process, which then starts Batch. No lock is held: a runtime that dies meanwhile never answers."""
        try:
            self._start_process()
        except Exception as error:
            self._problem = f"{type(error).__name__}: {error}"
            self._up.set()
        self._answered.set()

    def _start_process(self) -> None:
        from dragon.native.process import Process

        self._inbox, self._outbox = new_queue(), new_queue()
        process = Process(
            target=host,
            args=(self._inbox, self._outbox, *self._arguments),
            cwd=self._scratch.name,
            stdout=Process.DEVNULL,
            stderr=Process.DEVNULL,
            policy=self._policy,
        )
        process.start()
        self._process = process
        self._run_thread("batch", self._drain)
        self._run_thread("batch-workers", self._watch_workers)

    def wait_until_up(self, is_over: Callable[[], bool]) -> str | None:
        """Wait for Batch, which the first one to wait starts, until it is no longer wanted.

        Returns why it did not come up, or is gone.
        """
        with _lock:
            is_first = not self._asked and not self._closing
            self._asked |= is_first
        if is_first:
            self._start()
        until = time.monotonic() + BATCH_DEADLINE
        while not self._up.wait(WAIT_SECONDS) and not is_over():
            if self._is_gone():
                self.wake()
            if time.monotonic() > until:
                self._problem = self._problem or f"it was not up within {BATCH_DEADLINE:g} seconds"
                self._up.set()
        if self._problem is not None:
            self.retire()
        return self._problem

    def is_shared(self) -> bool:
        """Whether more than one backend uses it."""
        with _lock:
            return len(self._clients) > 1

    def retire(self) -> None:
        """Let no further backend share it."""
        with _lock:
            for key in [key for key, host in _open.items() if host is self]:
                del _open[key]

    def note_stuck(self, client: Client, is_stuck: bool) -> bool:
        """Take note of whether a backend expects nothing of it any more. Returns whether none that shares it does."""
        with _lock:
            if is_stuck:
                self._stuck.add(client)
            else:
                self._stuck.discard(client)
            return self._stuck.issuperset(self._clients)

    def wait_until_ended(self, is_over: Callable[[], bool]) -> None:
        """Wait until the last of those that shared it has left and ended it, or that is no longer of interest."""
        while not self._ended.wait(WAIT_SECONDS) and not is_over() and not self._is_gone():
            pass

    def leave(self, client: Client) -> str | None:
        """Use it no more; the last one ends it, and what runs on it. Bounded in time.

        Returns what went wrong, if anything.
        """
        with _lock:
            if client not in self._clients:  # it has left already
                return None
            self._clients.remove(client)
            if self._clients:
                return None
            self.retire()
        try:
            return self._close()
        finally:
            self._ended.set()
            # What was not destroyed is of a runtime, a process or workers that are gone.
            let_be(self._inbox, self._outbox, *(answers for answers, _ in list(self._answers.values())))
            self._scratch.cleanup()

    def end_worker(self, number: int) -> None:
        """Kill a worker, which does not stop what it runs."""
        place = self._places[number]
        if place.process is not None:
            if self._here:
                end(place.pid, 0.0, KILL_DEADLINE)
            else:
                place.process.kill()

    def _close(self) -> str | None:
        with _lock:
            self._closing = True
        while self._asked and not self._is_gone() and not self._answered.wait(WAIT_SECONDS):
            pass
        deadline = LEAVE_DEADLINE if self._up.is_set() else UNBORN_DEADLINE
        self._problem = self._problem or "it is being closed"
        self._up.set()
        if self._is_gone() or self._process is None:
            return None
        if self._dead:  # it may hold a lock of the queues for good
            self._end_workers()
            return None
        try:
            send(self._inbox, 0, 0, Kind.STOP, timeout=1.0)
            patience = deadline
        except Exception:  # its queue is full or broken, so it is killed
            patience = 0.0
        start = time.monotonic()
        problem = end_process(self._process, self._pid if self._here else 0, patience)
        if time.monotonic() - start > patience:
            self._end_workers()
        if self._is_gone():
            return problem
        try:
            send(self._outbox, 0, 0, Kind.STOP, timeout=1.0)
        except Exception as error:  # nobody takes anything any more, or its process died with a lock of it
            problem = problem or f"left a queue that cannot be closed: {type(error).__name__}: {error}"
        for thread in self._threads:
            thread.join(WAIT_SECONDS + 1.0)
        destroy(self._inbox, self._outbox)  # the workers' own go with the workers
        return problem

    def _end_workers(self) -> None:
        """End the workers that are known, where Batch did not do so itself."""
        self._log.warning("batch_did_not_leave", left="its managers, until the Dragon runtime ends")
        for place in self._places:
            if self._here and place.process is not None:
                end(place.pid, 0.0, KILL_DEADLINE)

    def wake(self) -> None:
        """Look again at the runtime, which is gone."""
        self._problem = self._problem or str(self._runtime.lost)
        self._up.set()

    def _is_gone(self) -> bool:
        """Whether the runtime is: nothing of it may be touched."""
        return self._runtime.lost is not None

    def _run_thread(self, name: str, body: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=body, args=args, name=f"rhapsody-dragon-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    # -- messages ----------------------------------------------------------------------------------------------------

    def send(self, unit: int, kind: Kind, data: bytes = b"") -> None:
        """Put a message for the process into its queue."""
        send(self._inbox, 0, unit, kind, data, PUT_DEADLINE)

    def worker_of(self, claim: bytes) -> tuple[Any, int]:
        """Return the queue on which the worker that made a claim listens, and the worker's number."""
        known = self._answers.get(claim)
        if known is None:
            from dragon.native.process import Process

            answers, puid, pid, parent = pickle.loads(claim)
            place = next((place for place in self._places if place.pid == pid and place.process.puid == puid), None)
            if place is None:
                place = Place(len(self._places), None)
                place.process, place.pid, place.parent = Process(None, ident=puid), pid, parent
                self._places.append(place)
            known = self._answers[claim] = (answers, place.number)
        return known

    def _drain(self) -> None:
        try:
            for _, unit, kind, data in received(self._outbox, Joiner(), lambda: self._is_gone() or self._dead):
                if kind is Kind.READY:
                    self._pid = int(bytes(data))
                    self._run_thread("batch-death", self._watch)
                elif kind is Kind.STARTED:
                    self._problem = bytes(data).decode() or None
                    self._up.set()
                elif kind is Kind.WORKER:
                    self._meet(bytes(data))
                elif kind is Kind.GONE:
                    self.spoil(unit)
                else:
                    self._give(unit, kind, data)
        except Exception as error:
            if not self._closing and not self._is_gone():
                self._lose(f"what Batch reports can no longer be read: {type(error).__name__}: {error}")

    def _meet(self, claim: bytes) -> None:
        try:
            self.worker_of(claim)
        except Exception:  # it has died, and its queue with it
            self.spoil()

    def _give(self, unit: int, kind: Kind, data: Message) -> None:
        """Give a message to all, to who holds the unit, or else to anybody, who sees that nobody holds it."""
        clients = tuple(self._clients)
        if kind is not Kind.GONE and unit:
            clients = tuple(client for client in clients if client.holds(unit)) or clients[:1]
        for client in clients:
            client.take(self, unit, kind, data)

    def spoil(self, worker: int = _UNKNOWN) -> None:
        """Tell all that a worker has died; of those that read messages, which have read its last one."""
        self.retire()
        self._give(worker, Kind.GONE, b"")

    def _lose(self, why: str) -> None:
        self.retire()
        for client in tuple(self._clients):
            client.lose(why)

    # -- deaths ------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Tell when the process that holds Batch ends."""
        if self._here:
            wait_for_end(self._pid, None)
        else:
            self._process.join()
        if self._closing or self._is_gone():
            return
        self._dead = True
        was_up = self._up.is_set() and self._problem is None
        self._problem = self._problem or "its process ended"
        self._up.set()
        if was_up:
            self._lose("the process that held Dragon's Batch ended")

    def _watch_workers(self) -> None:
        """Tell when a worker of Batch dies, behind the last message that it has sent."""
        deaths = deaths_here if self._here else deaths_anywhere
        waits = deaths(self._places, lambda: self._closing or self._is_gone())
        try:
            for place, _ in waits:
                place.process, place.pid = None, 0
                self.retire()  # who comes later would not be told
                send(self._outbox, 0, place.number, Kind.GONE, timeout=PUT_DEADLINE)
        except Exception as error:
            if not self._closing and not self._is_gone():
                self._lose(f"Batch's workers can no longer be watched: {type(error).__name__}: {error}")
        finally:
            waits.close()


_lock = threading.RLock()
_open: Final[dict[Hashable, BatchHost]] = {}


def share(key: Hashable, client: Client, make: Callable[[], BatchHost]) -> BatchHost:
    """Return the Batch that others use with the same key, or a new one. It may not be up yet."""
    with _lock:
        host = _open[key] = _open.get(key) or make()
        host._clients.append(client)
    return host
