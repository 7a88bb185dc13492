"""One Dragon Batch as the user's side sees it: a process inside the runtime (`far_batch.py`), and Batch's workers."""

from __future__ import annotations

import pickle
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from .deaths import KILL_DEADLINE, deaths_anywhere, deaths_here, end_process
from .far import HEAD, Joiner, Kind, send
from .far_batch import host
from .local import wait_for_end
from .pool import QUEUE_SIZE, WAIT_SECONDS
from .units import Place, destroy

#: Seconds for Batch to be up (measured: 7 on two cores, over 60 on busy ones with another Batch beside it).
BATCH_DEADLINE: Final = 150.0
#: Seconds for Batch to leave in order, before its process is killed.
LEAVE_DEADLINE: Final = 6.0
#: Seconds that `close` takes at most, which kills what does not leave.
CLOSE_DEADLINE: Final = LEAVE_DEADLINE + KILL_DEADLINE + 4.0
#: Seconds for a message to be taken by the process.
PUT_DEADLINE: Final = 60.0

Message = bytes | bytearray | memoryview


class BatchHost:
    """Starts a Batch, and exchanges messages with it; all methods may be called from any thread.

    Args:
        arguments: of `far_batch.host`, after its queues.
        folder: where Batch may leave its file.
        policy: where its process runs; None for Dragon's own placement.
        here: whether all processes are on this node.
        take: called in a thread with each message: unit, kind, data. GONE tells that a worker has died, whose last
            message was taken before; its unit is the number that `worker_of` gave.
        lose: called in a thread with the reason when Batch can no longer be used.
    """

    def __init__(
        self,
        arguments: Sequence[Any],
        *,
        folder: str,
        policy: Any,
        here: bool,
        take: Callable[[BatchHost, int, Kind, Message], None],
        lose: Callable[[str], None],
    ) -> None:
        self._arguments = arguments
        self._folder = folder
        self._policy = policy
        self._here = here
        self._take = take
        self._lose = lose
        self._up = threading.Event()
        self._problem: str | None = None
        self._inbox: Any = None
        self._outbox: Any = None
        self._process: Any = None
        self._threads: list[threading.Thread] = []
        self._answers: dict[bytes, tuple[Any, int]] = {}  # by claim: the queue on which the worker waits, and its place
        self._places: list[Place] = []
        self._closing = False
        self._dead = False  # its process, by itself
        self._gone = False

    # -- its life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process, which then starts Batch."""
        from dragon.native.process import Process
        from dragon.native.queue import Queue

        self._inbox, self._outbox = Queue(maxsize=QUEUE_SIZE), Queue(maxsize=QUEUE_SIZE)
        self._process = Process(
            target=host,
            args=(self._inbox, self._outbox, *self._arguments),
            cwd=self._folder,
            stdout=Process.DEVNULL,
            stderr=Process.DEVNULL,
            policy=self._policy,
        )
        self._process.start()
        self._run_thread("batch", self._drain)
        self._run_thread("batch-workers", self._watch_workers)

    def wait_until_up(self) -> str | None:
        """Wait for Batch, and return why it did not come up, or is gone."""
        if not self._up.wait(BATCH_DEADLINE):
            self._problem = self._problem or f"it was not up within {BATCH_DEADLINE:g} seconds"
        return self._problem

    def close(self) -> str | None:
        """End Batch and what runs on it; bounded in time. Returns what went wrong, if anything."""
        self._closing = True
        self._problem = self._problem or "it is being closed"
        self._up.set()
        if self._gone or self._process is None or self._dead:  # a dead one may hold a lock of the queues for good
            return None
        try:
            self._inbox.put(HEAD.pack(0, 0, Kind.STOP), timeout=1.0)
            patience = LEAVE_DEADLINE
        except Exception:  # its queue is full or broken, so it is killed
            patience = 0.0
        problem = end_process(self._process, patience)
        self._outbox.put(HEAD.pack(0, 0, Kind.STOP), timeout=1.0)
        for thread in self._threads:
            thread.join(WAIT_SECONDS + 1.0)
        destroy(self._inbox, self._outbox)  # the workers' own queues go with the workers: Dragon counts who holds them
        return problem

    @property
    def is_gone(self) -> bool:
        """Whether the runtime is gone, and Batch with it."""
        return self._gone

    def runtime_lost(self) -> None:
        """The runtime is gone: nothing of it may be touched."""
        self._gone = True
        self._problem = self._problem or "the Dragon runtime is gone"
        self._up.set()

    def _run_thread(self, name: str, body: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=body, args=args, name=f"rhapsody-dragon-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    # -- messages ----------------------------------------------------------------------------------------------------

    def send(self, unit: int, kind: Kind, data: bytes = b"") -> None:
        """Put a message for the process into its queue."""
        send(lambda part: self._inbox.put(part, timeout=PUT_DEADLINE), 0, unit, kind, data)

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
        joiner = Joiner()
        while not self._gone:
            try:
                message = joiner.feed(self._outbox.get(timeout=WAIT_SECONDS))
            except queue.Empty:
                if self._dead and self._closing:
                    return
                continue
            except Exception as error:
                if not self._closing:
                    self._lose(f"what Batch reports can no longer be read: {type(error).__name__}: {error}")
                return
            if message is None:
                continue
            _, unit, kind, data = message
            if kind is Kind.STOP:
                return
            if kind is Kind.READY:
                self._run_thread("batch-death", self._watch, int(bytes(data)))
            elif kind is Kind.STARTED:
                self._problem = bytes(data).decode() or None
                self._up.set()
            else:
                self._take(self, unit, kind, data)

    # -- deaths ------------------------------------------------------------------------------------------------------

    def _watch(self, pid: int) -> None:
        """Tell when the process that holds Batch ends."""
        if self._here:
            wait_for_end(pid, None)
        else:
            self._process.join()
        if self._closing or self._gone:
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
        waits = deaths(self._places, lambda: self._closing or self._gone)
        try:
            for place, _ in waits:
                place.process, place.pid = None, 0
                self._outbox.put(HEAD.pack(0, place.number, Kind.GONE), timeout=PUT_DEADLINE)
        except Exception as error:
            if not self._closing and not self._gone:
                self._lose(f"Batch's workers can no longer be watched: {type(error).__name__}: {error}")
        finally:
            waits.close()
