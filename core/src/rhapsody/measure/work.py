"""What is run to be measured. Workers import this module, so it needs nothing but the standard library."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

_SLEEPS: Final = 0.001  # seconds; less than this is spent spinning, since a sleep of the system's takes 60 µs at least
_PAYLOAD: Final = 100_000  # bytes


def noop() -> None:
    """Do nothing."""


def work(seconds: float) -> None:
    """Take this long: asleep, or spinning where that is too short to sleep."""
    if seconds >= _SLEEPS:
        time.sleep(seconds)
        return
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def length(data: bytes) -> int:
    """Receive bytes."""
    return len(data)


class Kind(NamedTuple):
    """A kind of tasks to measure with.

    Attributes:
        tasks: how many make a round, unless the user says.
        function: what is called; None for executables.
        arguments: makes the arguments of a call; of an executable, its command line.
        seconds: that the work of a task takes.
        summary: in a few words.
    """

    tasks: int
    function: Callable[..., Any] | None
    arguments: Callable[[int], tuple[Any, ...]]
    seconds: float
    summary: str


KINDS: Final = {
    "noop": Kind(20_000, noop, lambda _: (), 0.0, "functions that do nothing"),
    "sleep": Kind(500, work, lambda _: (0.01,), 0.01, "functions that sleep 10 ms"),
    "executable": Kind(300, None, lambda _: ("true",), 0.0, "executables that do nothing"),
    "payload": Kind(
        1000, length, lambda n: (n.to_bytes(8, "little") * (_PAYLOAD // 8),), 0.0, "functions of 100 kB, each its own"
    ),
}
