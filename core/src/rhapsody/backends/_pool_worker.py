"""The process at the other end of `_processes.ProcessLane`: takes units from a socket, runs them, sends frames back."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
import time
from typing import Final, NoReturn

from .. import worker
from ._pool_page import Page

LENGTH: Final = struct.Struct("<Q")  # of what follows: a unit on the way down, a frame on the way up
NOTE: Final = 2**63  # up, with a number added: so many bytes of frames are on the page
READY_MARK: Final = 2**64 - 2  # up: the process has come up
BEGIN_MARK: Final = 2**64 - 1  # up: the unit was received; from here on its first task may have started
END: Final = LENGTH.pack(0)  # up: the unit is finished
UNIT, SKIP = b"u", b"s"  # down: what the message is
HOLD: Final = 0.002  # seconds after a note in which there is no other; the program looks by itself once they are over
_LOOK: Final = 0.001  # seconds between two looks for messages while a unit runs


class _Line:
    """The worker's end of the socket, and of the page."""

    def __init__(self, fd: int, page: Page) -> None:
        self._page = page
        self._is_full = False  # the page; then this frame and all later ones of the unit go by line, to keep the order
        self._noted = 0.0
        self._socket = socket.socket(fileno=fd)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._looked = 0.0
        os.register_at_fork(after_in_child=self._close)  # a process that a task forks has no word in this

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
        """Say that the unit was received."""
        self._page.rewind()
        self._is_full, self._noted = False, 0.0
        self.send(LENGTH.pack(BEGIN_MARK))

    def report(self, frame: bytes) -> None:
        """Leave a frame where the program finds it, and now and then look for tasks to skip."""
        is_full = self._is_full = self._is_full or not self._page.put(frame)
        now = time.monotonic()
        if is_full:
            self.send(frame)
        elif now - self._noted > HOLD:
            self._noted = now
            self.send(LENGTH.pack(NOTE + self._page.count))
        if now - self._looked > _LOOK:
            self._looked = now
            while self._poll.poll(0):
                _, body = self.receive()  # while a unit runs only skips arrive
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
    """End without waiting for threads that a task may have left."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def main(fd: int, page: int) -> NoReturn:
    """Serve units until the other side closes the line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the user's program's to act on
    line = _Line(fd, Page(page))
    os.close(page)
    line.send(LENGTH.pack(READY_MARK))
    while True:
        kind, body = line.receive()
        if kind != UNIT:  # a skip that came too late
            continue
        line.begin()
        rest = worker.run_batch(body, line.report)
        line.send(rest + END)
