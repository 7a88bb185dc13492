"""The worker process of the process pool: takes batches from a socket, runs them, sends frames back."""

from __future__ import annotations

import atexit
import os
import select
import signal
import socket
import struct
import sys
import time
from typing import Final, NoReturn

from rhapsody import worker
from rhapsody.worker.progress import FramePage

LENGTH: Final = struct.Struct("<Q")  # of what follows: a batch on the way down, a frame on the way up
NOTE: Final = 2**63  # up, with a number added: so many bytes of frames are on the page
READY_MARK: Final = 2**64 - 2  # up: the process has come up
BEGIN_MARK: Final = 2**64 - 1  # up: the batch was received; from here on its first task may have started
END: Final = LENGTH.pack(0)  # up: the batch is finished

BATCH, SKIP, START = b"u", b"s", b"i"  # down: what the message is

HOLD: Final = 0.002  # seconds after a note in which there is no other; the program reads by itself once they are over
_CHECK_EVERY: Final = 0.001  # seconds between two checks for messages while a batch runs


class _Line:
    """The worker's end of the socket, and of the page."""

    def __init__(self, fd: int, page: FramePage) -> None:
        self._page = page
        self._is_full = False  # the page; then this frame and all later ones of the batch go by line, to keep the order
        self._noted = 0.0
        self._asked = 0  # tasks of the batch that were to begin
        self._socket = socket.socket(fileno=fd)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._checked = 0.0
        os.register_at_fork(after_in_child=self._close)  # a process that a task forks takes no part in this

    def send(self, data: bytes) -> None:
        """Send bytes. Ends the process when the other side is gone."""
        try:
            self._socket.sendall(data)
        except OSError:
            leave()

    def receive(self) -> tuple[bytes, bytes]:
        """Return the next message: its kind and its body. Ends the process when the other side is gone."""
        (length,) = LENGTH.unpack(self._read(LENGTH.size))
        body = self._read(length)
        return body[:1], body[1:]

    def begin(self) -> None:
        """Say that the batch was received."""
        self._page.rewind()
        self._is_full, self._noted, self._asked = False, 0.0, 0
        self.send(LENGTH.pack(BEGIN_MARK))

    def claim(self, _: str) -> bool:
        """Return whether the next task may begin: those behind the limit run elsewhere."""
        self._asked += 1
        return self._asked <= self._page.limit

    def report(self, frame: bytes) -> None:
        """Leave a frame where the program finds it, and now and then check for tasks to skip."""
        is_full = self._is_full = self._is_full or not self._page.put(frame)
        now = time.monotonic()
        if is_full:
            self.send(frame)
        elif now - self._noted > HOLD:
            self._noted = now
            self.send(LENGTH.pack(NOTE + self._page.count))
        if now - self._checked > _CHECK_EVERY:
            self._checked = now
            while self._poll.poll(0):
                _, body = self.receive()  # while a batch runs only skips arrive
                session, _, uid = body.decode().partition("\0")
                worker.stop(session, uid)

    def _close(self) -> None:
        self._socket.close()
        self._page.close()

    def _read(self, size: int) -> bytes:
        data = bytearray(size)
        view, got = memoryview(data), 0
        while got < size:
            try:
                count = self._socket.recv_into(view[got:], size - got)
            except ConnectionResetError:  # the program died with something of ours unread
                count = 0
            if not count:
                leave()
            got += count
        view.release()
        return bytes(data)


def leave() -> NoReturn:
    """End as a program does: handlers of atexit run, files are flushed, threads are waited for.

    The pool ends the process, and all that is left in its group, when its grace is over.
    """
    sys.exit(0)


def _stop_tracker() -> None:
    """Wait until multiprocessing's tracker has removed the shared memory and semaphores that tasks left.

    It is in the group of this process, which the pool ends as soon as this process has left.
    """
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    stop = getattr(getattr(tracker, "_resource_tracker", None), "_stop", None)  # there is no public way
    if stop is not None:
        stop()


def main(fd: int, page: int) -> NoReturn:
    """Serve batches until the other side closes the line."""
    atexit.register(_stop_tracker)  # first, and so the last to run
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the user's program's to act on
    line = _Line(fd, FramePage(page))
    os.close(page)
    worker.isolate()
    line.send(LENGTH.pack(READY_MARK))
    while True:
        kind, body = line.receive()
        if kind == START:
            worker.initialize(body)
        if kind != BATCH:  # a skip that came too late
            continue
        line.begin()
        rest = worker.run_batch(body, line.report, line.claim)
        line.send(rest + END)
