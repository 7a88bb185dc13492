"""Ends a worker with the process that started it, whatever others hold of the pipes between the two."""

from __future__ import annotations

import os
import select
import threading
import time
from typing import Final

from rhapsody.worker.guard_process import death_of

_POLL: Final = 0.2  # seconds between two polls, where no descriptor shows that a process ended
_followed: set[int] = set()


def end_with(owner: int) -> None:
    """End this process once another has ended, by a thread; calls after the first do nothing.

    An engine whose worker waits for the end of a pipe from its owner waits for whatever the owner has forked, too.

    Args:
        owner: the number of a living process.
    """
    if owner in _followed or owner == os.getpid():
        return
    _followed.add(owner)
    threading.Thread(target=_follow, args=(owner,), name="rhapsody owner", daemon=True).start()


def _follow(owner: int) -> None:
    death = death_of(owner)
    if death is not None:
        poll = select.poll()
        poll.register(death, select.POLLIN)
        poll.poll()
    else:
        parent = os.getppid()
        while os.getppid() == parent and _is_alive(owner):
            time.sleep(_POLL)
    os._exit(1)  # as from SIGKILL: nobody is left who would wait for more


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's by now
        return False
    return True
