"""What runs inside Dragon's processes: a worker of the group, and what all of them have in common."""

from __future__ import annotations

import mmap
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rhapsody import worker

from .messages import HEAD, Joiner, Kind, received, send

#: What a worker has done, in the file of progress: the unit, and how many of its tasks have begun.
PROGRESS: Final = struct.Struct("<QQ")
#: Frames are held back for this long, in seconds,
HOLD_SECONDS: Final = 0.005
#: or until there are this many bytes of them.
HOLD_BYTES: Final = 2**18


class Reporter:
    """Sends a worker's frames: the first at once, those that follow closely together.

    Every message that arrives makes the user's interpreter change threads, so a message for each of many short tasks
    would cost more than the tasks. What is held back is accounted for in `progress`, a file in memory that outlives
    the worker: should it die, the user's side knows which tasks had begun. Without such a file
    nothing is held back.

    Args:
        place: the worker's number.
        outbox: where frames go.
        progress: path of the file; None if the worker is on another node than the user's process.
    """

    def __init__(self, place: int, outbox: Any, progress: str | None) -> None:
        self._place, self._outbox = place, outbox
        self._lock = threading.Lock()
        self._held: list[bytes] = []
        self._size = 0
        self._sent_at = 0.0
        self._waiting = threading.Event()
        self._map: mmap.mmap | None = None
        self._unit = 0
        self._begun: set[str] = set()  # of the unit
        self._running: str | None = None
        self._unwanted: set[str] = set()
        if progress is not None:
            with Path(progress).open("r+b") as file:
                self._map = mmap.mmap(file.fileno(), 0)
            threading.Thread(target=self._flush_late, name="rhapsody-reports", daemon=True).start()

    def begin(self, unit: int) -> None:
        """Go on to a unit."""
        with self._lock:
            self._unit = unit
            self._begun.clear()
            self._note()

    def claim(self, uid: str) -> bool:
        """Begin a task, unless it was canceled."""
        with self._lock:
            if uid in self._unwanted:
                self._unwanted.discard(uid)
                return False
            self._begun.add(uid)
            self._running = uid
            self._note()
        return True

    def report(self, frame: bytes) -> None:
        """Take the frame of the task that has just ended."""
        with self._lock:
            self._running = None
            self._held.append(frame)
            self._size += len(frame)
            if self._map is None or self._size > HOLD_BYTES or time.monotonic() - self._sent_at > HOLD_SECONDS:
                self._send()
        if self._held:
            self._waiting.set()

    def die(self, uid: str) -> None:
        """End this process if it runs this task, or any if it is ''; by now it may have gone on to another.

        Nothing is being sent meanwhile, so that no queue is left locked.
        """
        with self._lock:
            if uid in ("", self._running):
                self._send()
                os.kill(os.getpid(), signal.SIGKILL)

    def leave_out(self, unit: int, uid: str) -> None:
        """Do not begin a task of this unit or a later one; say so if it has not begun."""
        with self._lock:
            if unit > self._unit or (unit == self._unit and uid not in self._begun):
                self._unwanted.add(uid)
                send(self._outbox, self._place, unit, Kind.LEFT_OUT, uid.encode())

    def end(self, rest: bytes) -> None:
        """Send what is held back, and that the unit is over."""
        with self._lock:
            if rest:
                self._held.append(rest)
            self._send()
            send(self._outbox, self._place, self._unit, Kind.END)

    def _note(self) -> None:
        if self._map is not None:
            PROGRESS.pack_into(self._map, self._place * PROGRESS.size, self._unit, len(self._begun))

    def _send(self) -> None:
        held, self._held, self._size = self._held, [], 0
        if held:
            send(self._outbox, self._place, self._unit, Kind.FRAME, b"".join(held))
            self._sent_at = time.monotonic()

    def _flush_late(self) -> None:
        """Send what no later frame has taken along."""
        while True:
            self._waiting.wait()
            time.sleep(HOLD_SECONDS)
            with self._lock:
                self._waiting.clear()
                self._send()


def work(place: int, inbox: Any, control: Any, outbox: Any, progress: str | None, path: Sequence[str]) -> None:
    """Run units until told to leave; the body of a worker of the group.

    Args:
        place: the worker's number.
        inbox: queue of batches.
        control: queue of requests about what runs.
        outbox: queue of frames, shared by the workers.
        progress: see `Reporter`.
        path: the user's sys.path, so that what the user's script imports can be imported here.
    """
    extend_path(path)
    reporter = Reporter(place, outbox, progress)
    send(outbox, place, 0, Kind.READY, f"{os.getpid()} {os.getppid()}".encode())
    threading.Thread(target=_listen, args=(control, reporter), name="rhapsody-control", daemon=True).start()
    for _, unit, _, data in received(inbox, Joiner()):
        reporter.begin(unit)
        reporter.end(worker.run_batch(bytes(data), reporter.report, reporter.claim))


def extend_path(path: Sequence[str]) -> None:
    """Make the user's modules importable, after the interpreter's own."""
    sys.path.extend(entry for entry in path if entry not in sys.path)


def name_task(session: str, uid: str) -> bytes:
    """What a request to stop an executable says."""
    return f"{session}\n{uid}".encode()


def stop_task(name: bytes) -> None:
    """Serve such a request; the end is waited for elsewhere, so that the next request is served meanwhile."""
    session, uid = name.decode().split("\n", 1)
    threading.Thread(target=worker.stop, args=(session, uid), daemon=True).start()


def _listen(control: Any, reporter: Reporter) -> None:
    """Serve requests about what runs, for the worker's life."""
    while True:
        message = control.get()
        _, unit, kind = HEAD.unpack_from(message)
        data = message[HEAD.size :]
        if kind == Kind.KILL:
            reporter.die(data.decode())
        elif kind == Kind.SKIP:
            reporter.leave_out(unit, data.decode())
        elif kind == Kind.TERMINATE:
            stop_task(data)
