"""The engine under a backend, driven by its own interface: what a backend is compared with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import attrs

from rhapsody.seam.backend import AttachableBackend
from rhapsody.seam.metadata import entry_points

GROUP: Final = "rhapsody.bench"


@attrs.frozen(kw_only=True)
class RawEngine:
    """An engine, used as its own documentation says.

    Attributes:
        label: its calls, in the engine's words.
        run: `run(function, calls)` submits `function(*arguments)` for each of the calls, one by one, and returns when
            all have ended. Called in one thread, which is not the loop's.
        commands: `commands(argvs)` runs executables, likewise; None if the engine has no way of its own.
        awaited: `await awaited(function)` runs one call from the loop, where the engine has a way to; None measures
            the latency of `run`.
        most: tasks in a round, at most, where more would take too long.
    """

    label: str
    run: Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Any]
    commands: Callable[[Sequence[Sequence[str]]], Any] | None = None
    awaited: Callable[[Callable[[], Any]], Awaitable[Any]] | None = None
    most: int = 20_000


RawFactory = Callable[[AttachableBackend, int], AbstractContextManager[RawEngine]]


def find_raw_engine(name: str) -> RawFactory | None:
    """Return the factory of a backend's raw engine, given the started backend and its slots; None if there is none.

    Args:
        name: of the backend, as in `rhapsody backends`; entry points of the group `rhapsody.bench` have the same.
    """
    for point in entry_points(GROUP):
        if point.name == name.rpartition(":")[2]:
            factory: RawFactory = point.load()
            return factory
    return None
