"""A result that stays where its task ran: `keep=True`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any


class KeptResult:
    """The `return_value` of a task with `keep=True` on a backend that runs it elsewhere; `task.fetch()` brings it.

    The engine keeps the result for as long as this object lives, and its session is open.

    Args:
        uid: of the task.
        backend: the name of the backend that keeps it.
        held: what has the engine keep it, until it is released.
        fetch: brings the result.
        reduced: a function and its arguments, by which a worker that has the result loads it.
    """

    __slots__ = ("__weakref__", "backend", "fetch", "held", "reduced", "uid")

    def __init__(
        self,
        uid: str,
        backend: str,
        held: Any,
        fetch: Callable[[], Awaitable[Any]],
        reduced: tuple[Callable[..., Any], tuple[Any, ...]],
    ) -> None:
        self.uid = uid
        self.backend = backend
        self.held = held
        self.fetch = fetch
        self.reduced = reduced

    def __repr__(self) -> str:
        """Name the task and the backend."""
        return f"<result of task {self.uid}, kept by backend {self.backend!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse to travel: what follows it knows nothing of the engine."""
        raise TypeError(
            f"the result of task {self.uid} is kept by backend {self.backend!r}: give the task itself in its place, "
            f"or what `await task.fetch()` returns"
        )


class KeptArgument:
    """Stands for a kept result among the arguments of a task on its way to a worker, where it arrives as the value."""

    __slots__ = ("result",)

    def __init__(self, result: KeptResult) -> None:
        self.result = result

    def __repr__(self) -> str:
        """Name the result."""
        return repr(self.result)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as what the worker has."""
        return self.result.reduced
