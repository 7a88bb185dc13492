"""Names the object, inside what was to travel, that cannot, and what to do about it."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from types import FunctionType, GeneratorType, MethodType
from typing import Any, Final

from rhapsody.errors import describe

_STEPS: Final = 200  # pickles tried
_DEPTH: Final = 20
_CURES: Final[tuple[tuple[tuple[type, ...], str], ...]] = (
    (
        (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Event, threading.Semaphore),
        "a lock works in one process only: make it in the function, or in a module that the worker imports",
    ),
    ((io.IOBase,), "an open file belongs to one process: pass its path, and open it in the function"),
    ((GeneratorType,), "a generator cannot be copied: pass a list of what it yields, or make it in the function"),
    ((threading.Thread,), "a thread belongs to one process: start it in the function"),
)
_DEFAULT_CURE: Final = "make it in the function, or in a module that the worker imports, or pass what can be pickled"


def explain(value: Any, can_travel: Callable[[Any], bool]) -> str:
    """Return a sentence about the innermost object of a value that cannot travel; empty where none is found.

    Args:
        value: what was to travel.
        can_travel: whether a value can.
    """
    left = _STEPS
    path: list[str] = []
    seen: set[int] = set()
    while len(path) < _DEPTH:
        seen.add(id(value))
        for where, part in _parts(value):
            if id(part) in seen:
                continue
            left -= 1
            if left < 0:
                return ""
            if not can_travel(part):
                path.append(where)
                value = part
                break
        else:
            break
    if not path:
        return ""
    return f"{', '.join(reversed(path))} is {describe(value)}; {_cure(value)}"


def _cure(value: Any) -> str:
    return next((cure for kinds, cure in _CURES if isinstance(value, kinds)), _DEFAULT_CURE)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds, and how to say where."""
    if isinstance(value, MethodType):
        yield f"the object of the method {value.__name__}", value.__self__
        yield f"the method {value.__name__}", value.__func__
    elif isinstance(value, FunctionType):
        name = value.__qualname__
        code = value.__code__
        for variable in code.co_names:
            if variable in value.__globals__:
                yield f"the global {variable!r} of {name}", value.__globals__[variable]
        for variable, cell in zip(code.co_freevars, value.__closure__ or (), strict=False):
            try:
                yield f"the variable {variable!r} of {name}", cell.cell_contents
            except ValueError:  # it is not set yet
                continue
        for number, default in enumerate(value.__defaults__ or ()):
            yield f"default {number} of {name}", default
    elif isinstance(value, dict):
        yield from ((f"the item {describe(key)}", item) for key, item in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"item {number}", item) for number, item in enumerate(value))
    else:
        kind = value.__name__ if isinstance(value, type) else f"a {type(value).__name__}"
        for name, held in list(getattr(value, "__dict__", {}).items()):
            if not (isinstance(value, type) and name in ("__dict__", "__weakref__")):
                yield f"the attribute {name!r} of {kind}", held
