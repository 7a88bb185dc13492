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

#: Number of the worker, batch, kind.
HEAD: Final = struct.Struct("<IQB")
#: Bytes of one part with its head; Dragon's allocator rounds up to a power of two.
PART: Final = 8 * 2**20
#: Messages that a queue holds; more wait at the sender.
QUEUE_SIZE: Final = 1000
#: Bytes that a queue sets aside for each message; what is longer is put beside it. Dragon's own number, 64 KiB, would
#: take 64 MiB for a queue, and 32 workers all of its memory pool (4 GiB).
BLOCK_SIZE: Final = 1024
#: Seconds for which one wait for a message lasts, before it checks whether it is still wanted. Each wait of Dragon's
#: begins with about 80 ms in which it spins: waits of one second took 8% of a core.
WAIT_SECONDS: Final = 15.0
#: Seconds for a message to be taken by the receiver.
PUT_DEADLINE: Final = 60.0
#: Seconds between two tries to get memory for a message.
_MEMORY_SECONDS: Final = 0.01

Message = bytes | bytearray | memoryview


class Kind(IntEnum):
    """What a message is."""

    READY = 0  # the worker takes batches; its pid and its parent's follow
    PART = 1  # a part of a frame, or of a batch; more of it follows
    FRAME = 2  # a frame, or the last part of one
    RUN = 3  # a batch, or the last part of one
    END = 4  # the batch is over
    GONE = 5  # a worker has ended: the user's side sends it to itself, so that it is read after the worker's last frame
    STOP = 6  # the receiver is to leave
    DIE = 7  # end this process, whatever it runs
    KILL = 8  # leave this function out, or end this process if it runs it
    TERMINATE = 9  # leave this executable out, or stop it if it runs
    LEFT_OUT = 10  # the task will not begin
    BEGUN = 11  # it has begun
    GIVE_BACK = 12  # leave these tasks out, unless they have begun
    GIVEN_BACK = 13  # these will not begin here


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
    queue: Any, worker: int, batch: int, kind: Kind, data: bytes | memoryview = b"", timeout: float | None = None
) -> None:
    """Put one message into a queue, in parts where it is large; wait for room in the queue, and for memory.

    `worker` is the number of the one that sends or receives, `timeout` in seconds for each part; None waits for ever.

    Raises:
        queue.Full, or an exception of Dragon: it was not put, or not all of it.
    """
    size = PART - HEAD.size
    if len(data) > size:
        view = memoryview(data)
        head = HEAD.pack(worker, batch, Kind.PART)
        while len(view) > size:
            _put(queue, head + view[:size], timeout)
            view = view[size:]
        data = view
    _put(queue, HEAD.pack(worker, batch, kind) + data, timeout)


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
        """Take one message in; return a whole one as worker, batch, kind and data, or None if more is to come."""
        worker, batch, number = HEAD.unpack_from(message)
        kind, data = Kind(number), memoryview(message)[HEAD.size :]
        if kind is Kind.PART:
            self._parts.setdefault((worker, batch), bytearray()).extend(data)
            return None
        if self._parts and (parts := self._parts.pop((worker, batch), None)) is not None:
            parts.extend(data)
            return worker, batch, kind, parts
        return worker, batch, kind, data

    def forget(self, worker: int) -> None:
        """Drop the parts of a sender that has died."""
        for key in [key for key in self._parts if key[0] == worker]:
            del self._parts[key]


def received(
    source: Any, joiner: Joiner, is_over: Callable[[], bool] | None = None
) -> Iterator[tuple[int, int, Kind, Message]]:
    """Yield what arrives in a queue as worker, batch, kind and data, until STOP arrives, or it is over and all is read.

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
