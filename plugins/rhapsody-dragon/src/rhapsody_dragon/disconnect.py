"""Letting go of a Dragon runtime that is gone, or does not answer; it reaches into what Dragon keeps for itself.

A request to such a runtime is never answered, and raises nothing: its thread stays inside of a queue, in memory of the
runtime's. Dragon's own way to disconnect closes that queue, which crashes the whole process (Dragon 0.15). So the
connection is first put aside, for the next runtime to find none, and closed once nobody is inside of it any more.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

#: Seconds for a request that may never be answered.
DEADLINE: Final = 5.0
#: Seconds for a thread that waits for an answer to leave, once there is something to read.
_LEAVE_SECONDS: Final = 1.0
#: Seconds for one that is woken to find that there is nothing to read.
_TURN_SECONDS: Final = 0.005
#: Where Dragon keeps the queues to and from its services.
_ANSWERS: Final = "_GS_RETURN"  # the one that is read
_QUEUES: Final = ("_GS_INPUT", _ANSWERS, "_LS_INPUT", "_LS_RETURN")
_POOL: Final = "_EXTERNAL_DEFAULT_POOL"

_left: Final[list[_Connection]] = []  # those in which a thread waits for good, kept from being collected


class _Connection(NamedTuple):
    queues: Mapping[str, Any]
    pool: Any
    locks: Sequence[Any]  # one is held by who sends, one by who reads
    waiting: Sequence[threading.Event]  # of those who wait for their turn to read


def detach(handle: Any) -> bool:
    """Let a runtime know that this process leaves, and disconnect from it. Returns whether it has answered in time."""
    return _in_time(handle.detach)


def let_go(handle: Any) -> None:
    """Disconnect from a runtime that is gone, or does not answer; whoever waits for its answers gets an error.

    Raises nothing, since nobody could do more.

    Args:
        handle: what `dragon.workflows.runtime.attach` returned. It is of no use afterwards.
    """
    from dragon.globalservices import api_setup
    from dragon.workflows import runtime

    with contextlib.suppress(Exception):  # a detach that comes late may be at the same
        handle._attached = False
        handle._restore_pre_attach_process_state()
    connection = _put_aside(api_setup)
    if not _in_time(lambda: _close(connection)):
        _left.append(connection)
        api_setup._GS_SEND_LOCK, api_setup._GS_RECV_LOCK = threading.RLock(), threading.RLock()
        _wake(connection.waiting)
    runtime._lock = threading.Lock()  # a detach may hold it, for good
    gc.enable()  # which Dragon keeps off while somebody waits


def _put_aside(api_setup: Any) -> _Connection:
    """Let a request from now on find no queue, which is an error. The locks stay: who has one returns it by name."""
    queues = {name: getattr(api_setup, name) for name in _QUEUES}
    pool = getattr(api_setup, _POOL)
    for name in (*_QUEUES, _POOL, "_GS_RETURN_CUID", "_LS_RETURN_CUID"):
        setattr(api_setup, name, None)
    waiting = list(api_setup._WAKEUPS.values())
    api_setup._WAKEUPS.clear()
    api_setup._INFRASTRUCTURE_CONNECTED = False
    return _Connection(queues, pool, (api_setup._GS_SEND_LOCK, api_setup._GS_RECV_LOCK), waiting)


def _close(connection: _Connection) -> None:
    """Have all threads leave a connection that was put aside, and close it.

    Raises:
        TimeoutError: one of them stays.
    """
    if not _is_free(connection.locks, 0.0):
        connection.queues[_ANSWERS].put(_unreadable(), timeout=_LEAVE_SECONDS)
        if not _is_free(connection.locks, _LEAVE_SECONDS):
            raise TimeoutError
    _wake(connection.waiting)
    for queue in connection.queues.values():
        queue.close()
    connection.pool.detach()


def _wake(waiting: Sequence[threading.Event]) -> None:
    """Wake those who wait for their turn to read: they find no queue, which is an error."""
    for _ in waiting:  # one leaves each time; the others may find that it is not their turn, and wait again
        for one in waiting:
            one.set()
        time.sleep(_TURN_SECONDS)


def _is_free(locks: Sequence[Any], seconds: float) -> bool:
    """Whether nobody holds any of the locks, or will have let go of it soon."""
    for lock in locks:
        if not lock.acquire(timeout=seconds):
            return False
        lock.release()
    return True


def _unreadable() -> Any:
    """Make a message that cannot be read, and is an error for whoever reads it."""
    from dragon.infrastructure.messages import InfraMsg

    class Unreadable(InfraMsg):  # type: ignore[misc]  # Dragon ships no type information
        def serialize(self) -> bytes:
            return b"the Dragon runtime has ended"

    return Unreadable(tag=0)


def _in_time(request: Callable[[], object]) -> bool:
    """Whether a request, which may never be answered, has done what it should."""
    is_done = threading.Event()

    def run() -> None:
        with contextlib.suppress(Exception):  # of each part of Dragon a class of its own: the runtime is going, or gone
            request()
            is_done.set()

    thread = threading.Thread(target=run, name="rhapsody-dragon-disconnect", daemon=True)
    thread.start()
    thread.join(DEADLINE)
    return is_done.is_set()
