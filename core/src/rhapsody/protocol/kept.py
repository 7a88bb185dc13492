"""Results that stay in their worker: stored there as large arguments are, and loaded by each task that is given one."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import Any, Final, NamedTuple

from rhapsody.errors import SerializationError
from rhapsody.protocol.encoding import dumps
from rhapsody.protocol.shared import StoredBytes, load, starts_of


class Kept(NamedTuple):
    """What travels home in place of a result that is kept: its key, and the sizes of its parts."""

    key: str
    sizes: tuple[int, ...]


class _Latest(threading.local):
    """What the task that this thread ran last has kept."""

    stored: StoredBytes | None = None


_latest: Final = _Latest()


class Keeping:
    """Calls the function of a task, and keeps what that returns."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what stands for the result; of a coroutine function, a coroutine that does."""
        value = self.function(*args, **kwargs)
        return _later(value) if type(value) is CoroutineType else _keep(value)


async def _later(coroutine: Coroutine[Any, Any, Any]) -> Kept:
    return _keep(await coroutine)


def _keep(value: Any) -> Kept:
    buffers: list[memoryview] = []
    try:
        # As to a worker, since it may go to others; what came from the program's script is the script's own at home.
        parts: list[bytes | memoryview] = [dumps(value, buffers=buffers), *buffers]
    except Exception as error:
        raise SerializationError(
            f"the result cannot be kept: {type(error).__name__}: {error}; return what can be pickled"
        ) from error
    sizes = tuple(map(len, parts))
    _latest.stored = StoredBytes.of(uuid.uuid4().hex, parts, starts_of(sizes)[-1])
    return Kept(_latest.stored.key, sizes)


def take_kept() -> StoredBytes | None:
    """Return what the task that this thread ran last has kept, for the engine to hold; on a worker, once."""
    stored, _latest.stored = _latest.stored, None
    return stored


def load_result(key: str, sizes: tuple[int, ...]) -> Any:
    """Load a kept result that is in this process: a copy of the caller's own."""
    return load((key, sizes, None))
