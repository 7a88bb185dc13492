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

LENGTH: Final = struct.Struct("<Q")  # of what follows: a unit on the way down, a frame on the way up
READY_MARK: Final = 2**64 - 2  # up: the process has come up
BEGIN_MARK: Final = 2**64 - 1  # up: the unit was received; from here on its first task may have started
END: Final = LENGTH.pack(0)  # up: the unit is finished
UNIT, SKIP = b"u", b"s"  # down: what the message is
_LOOK: Final = 0.001  # seconds between two looks for messages while a unit runs


class _Line:
    """The worker's end of the socket."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._looked = 0.0
        os.register_at_fork(after_in_child=self._socket.close)  # a process that a task forks has no word in this
        self.send = self._socket.sendall

    def receive(self) -> tuple[bytes, bytes]:
        """Return the next message: its kind and its body. Ends the process when the other side is gone."""
        (length,) = LENGTH.unpack(self._read(LENGTH.size))
        body = self._read(length)
        return body[:1], body[1:]

    def report(self, frame: bytes) -> None:
        """Send a frame, and now and then look for tasks to skip."""
        self.send(frame)
        now = time.monotonic()
        if now - self._looked > _LOOK:
            self._looked = now
            while self._poll.poll(0):
                _, body = self.receive()  # while a unit runs only skips arrive
                session, _, uid = body.decode().partition("\0")
                worker.stop(session, uid)

    def _read(self, size: int) -> bytes:
        data = bytearray(size)
        view, got = memoryview(data), 0
        while got < size:
            count = self._socket.recv_into(view[got:], size - got)
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


def main(fd: int) -> NoReturn:
    """Serve units until the other side closes the line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the user's program's to act on
    line = _Line(fd)
    line.send(LENGTH.pack(READY_MARK))
    while True:
        kind, body = line.receive()
        if kind != UNIT:  # a skip that came too late
            continue
        line.send(LENGTH.pack(BEGIN_MARK))
        rest = worker.run_batch(body, line.report)
        line.send(rest + END)
