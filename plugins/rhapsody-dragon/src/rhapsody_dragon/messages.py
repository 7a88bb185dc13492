"""Messages between the user's process and Dragon's, and the queues of Dragon that carry them.

A message is bytes: a head of `HEAD` and then what its kind says. Frames and batches larger than `PART` travel in
parts, so that a result of any size passes through a queue of bounded memory, and never has to fit into it.
"""

from __future__ import annotations

import queue
import struct
import time
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, Final

#: Place of the sender, unit, kind.
HEAD: Final = struct.Struct("<IQB")
#: Bytes of one part with its head; Dragon's allocator rounds up to a power of two.
PART: Final = 8 * 2**20
#: Messages that a queue holds; more wait at the sender.
QUEUE_SIZE: Final = 1000
#: Bytes that a queue sets aside for each message; what is longer is put beside it. Dragon's own number, 64 KiB, would
#: take 64 MiB for a queue, and 32 workers all of its memory pool (4 GiB).
BLOCK_SIZE: Final = 1024
#: Seconds for which one wait for a message lasts, before it looks whether it is still wanted.
WAIT_SECONDS: Final = 1.0
#: Seconds for a message to be taken by the far end.
PUT_DEADLINE: Final = 60.0
#: Seconds between two tries to get memory for a message.
_MEMORY_SECONDS: Final = 0.01

Message = bytes | bytearray | memoryview


class Kind(IntEnum):
    """What a message is."""

    READY = 0  # the worker takes units; its pid and its parent's follow
    PART = 1  # a part of a frame, or of a batch; more of it follows
    FRAME = 2  # a frame, or the last part of one
    RUN = 3  # a batch, or the last part of one
    END = 4  # the unit is over
    GONE = 5  # a process has ended: the user's side tells itself, so that it is read after the process's last frame
    STOP = 6  # the far end is to leave
    KILL = 7  # end this process, if it still runs this task; without one, in any case
    TERMINATE = 8  # stop the executable of this uid
    JOB = 9  # how a unit of Batch ended, as a pickle
    STARTED = 10  # what was started lately is up
    SKIP = 11  # do not begin this task
    LEFT_OUT = 12  # it will not begin
    CLAIM = 13  # a unit of Batch begins, if the answer on the queue that follows is RUN; without a queue it begins
    WORKER = 14  # a worker of Batch is up; what follows is as in its claims


def new_queue(size: int = QUEUE_SIZE) -> Any:
    """Make a queue of Dragon that holds `size` messages."""
    from dragon.native.queue import Queue

    return Queue(maxsize=size, block_size=BLOCK_SIZE)


def destroy(*queues: Any) -> None:
    """Give queues back to Dragon."""
    for one in queues:
        try:
            one.destroy()
        except Exception:  # it went with its process or its runtime
            pass


def let_be(*queues: Any) -> None:
    """Have queues whose makers or runtime are gone do nothing more.

    Once collected they would give back their reference to a channel of that number, which may be another's in the next
    runtime by then (Dragon 0.15).
    """
    for one in queues:
        if one is not None:
            one._closed = True


def send(
    queue: Any, place: int, unit: int, kind: Kind, data: bytes | memoryview = b"", timeout: float | None = None
) -> None:
    """Put one message into a queue, in parts where it is large; wait for room in the queue, and for memory.

    Args:
        queue: of Dragon.
        place: the sender's or the receiver's number.
        unit: what it is about.
        kind: what it is.
        data: what it says.
        timeout: seconds for each part; None waits for ever.

    Raises:
        queue.Full, or an exception of Dragon: it was not put, or not all of it.
    """
    size = PART - HEAD.size
    if len(data) > size:
        view = memoryview(data)
        head = HEAD.pack(place, unit, Kind.PART)
        while len(view) > size:
            _put(queue, head + view[:size], timeout)
            view = view[size:]
        data = view
    _put(queue, HEAD.pack(place, unit, kind) + data, timeout)


def _put(queue: Any, message: bytes, timeout: float | None) -> None:
    """Put one message. Dragon itself waits for room in the queue, but raises while its memory pool is full."""
    until = None if timeout is None else time.monotonic() + timeout
    while True:
        try:
            queue.put(message, timeout=timeout)
            return
        except Exception as error:
            if not _wants_memory(error) or (until is not None and time.monotonic() > until):
                raise
        time.sleep(_MEMORY_SECONDS)


def _wants_memory(error: Exception) -> bool:
    from dragon.managed_memory import DragonPoolAllocationNotAvailable

    return isinstance(error, DragonPoolAllocationNotAvailable)


class Joiner:
    """Puts the parts of messages together again; one for each queue."""

    def __init__(self) -> None:
        self._parts: dict[tuple[int, int], bytearray] = {}

    def feed(self, message: bytes) -> tuple[int, int, Kind, Message] | None:
        """Take one message in; return a whole one as place, unit, kind and data, or None if more is to come."""
        place, unit, number = HEAD.unpack_from(message)
        kind, data = Kind(number), memoryview(message)[HEAD.size :]
        if kind is Kind.PART:
            self._parts.setdefault((place, unit), bytearray()).extend(data)
            return None
        if self._parts and (parts := self._parts.pop((place, unit), None)) is not None:
            parts.extend(data)
            return place, unit, kind, parts
        return place, unit, kind, data

    def forget(self, place: int) -> None:
        """Drop the parts of a sender that has died."""
        for key in [key for key in self._parts if key[0] == place]:
            del self._parts[key]


def received(
    source: Any, joiner: Joiner, is_over: Callable[[], bool] | None = None
) -> Iterator[tuple[int, int, Kind, Message]]:
    """Yield what arrives in a queue, as place, unit, kind and data, until told to STOP, or it is over and all is read.

    Raises:
        Exception: of Dragon; the queue can no longer be read.
    """
    timeout = None if is_over is None else WAIT_SECONDS
    while True:
        try:
            message = joiner.feed(source.get(timeout=timeout))
        except queue.Empty:
            if is_over is not None and is_over():
                return
            continue
        if message is None:
            continue
        if message[2] is Kind.STOP:
            return
        yield message
