"""How the death of a worker becomes known, on this node and on others, and how a process is ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final

from .local import Ends, end, is_alive
from .units import Place

#: Seconds for which one wait lasts, before it looks whether workers have been replaced, or it is wanted no more.
WAIT_SECONDS: Final = 1.0
#: Seconds after which Dragon is asked about a worker that has not reported for duty.
LATE_SECONDS: Final = 3.0
#: Seconds for a process to be gone that was killed.
KILL_DEADLINE: Final = 5.0

Deaths = Generator[tuple[Place, int], None, None]


def deaths_here(places: Sequence[Place], is_over: Callable[[], bool]) -> Deaths:
    """Yield the workers that die, with their exit codes, as the operating system of this node tells it.

    Ends when `is_over`, or when the runtime itself dies, which `runtime.py` tells.
    """
    ends = Ends()
    try:
        while not is_over():
            known = {place.pid: place for place in places if place.process is not None and place.pid}
            for pid in known:
                ends.add(pid)
            for pid in ends.wait(WAIT_SECONDS):
                place = known[pid]
                if is_over() or not is_alive(place.parent):
                    return
                code = place.process.join(timeout=WAIT_SECONDS)
                if code is None:  # Dragon has not noticed yet; should it mean another process, that must not be left
                    place.process.kill()
                yield place, -9 if code is None else int(code)
            for place in [place for place in places if _is_late(place)]:  # it may have died before it could say its pid
                if not is_over() and (code := place.process.join(timeout=0)) is not None:
                    yield place, int(code)
    finally:
        ends.close()


def _is_late(place: Place) -> bool:
    return place.process is not None and not place.pid and time.monotonic() - place.started_at > LATE_SECONDS


def deaths_anywhere(places: Sequence[Place], is_over: Callable[[], bool]) -> Deaths:
    """Yield the workers that die on any node, with their exit codes, as Dragon tells it. Ends when `is_over`."""
    from dragon.globalservices.process import multi_join

    while not is_over():
        living = {place.process.puid: place for place in places if place.process is not None}
        if not living:
            time.sleep(WAIT_SECONDS)
            continue
        ended, _ = multi_join(list(living), timeout=WAIT_SECONDS)
        for puid, code in ended or ():
            if is_over():
                return
            yield living[puid], int(code)


def end_process(process: Any, pid: int, patience: float) -> str | None:
    """Give a process of Dragon's `patience` seconds to leave, and kill it then; return what went wrong, if anything.

    Args:
        process: as Dragon knows it.
        pid: where it is on this node: then Dragon is not asked, which never answers if the runtime dies meanwhile. 0
            otherwise.
        patience: in seconds.
    """
    try:
        if pid:
            is_gone = end(pid, patience, KILL_DEADLINE)
        else:
            is_gone = process.join(max(0.0, patience)) is not None
            if not is_gone:
                process.kill()
                is_gone = process.join(KILL_DEADLINE) is not None
    except Exception as error:  # each part of Dragon has a class of its own
        return f"could not be ended: {type(error).__name__}: {error}"
    return None if is_gone else f"was killed and is still there after {KILL_DEADLINE:g} seconds"
