"""What identifies a task: the key that batching learns by, and its size."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, ValuesView
from functools import partial
from inspect import isroutine
from itertools import islice
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any, Final

from rhapsody.model.description import Description

_SMALL: Final = frozenset({type(None), bool, int, float, complex})
_UNKNOWN: Final = 64  # bytes assumed of an object that does not report its size
_DIGITS: Final = re.compile(r"\d+")
_SAMPLE: Final = 64  # of what a container holds, that is weighed
_EMPTY: Final = CellType()
_FUNCTIONS: Final = (FunctionType, MethodType, partial)
_LINE: Final = 1000  # characters of a command line that identify an executable


def key_of_function(task: Description) -> Any:
    """Return the code of a task's function, or else its type."""
    function: Any = task.function
    function = getattr(function, "func", function)  # a partial's own
    code = getattr(function, "__code__", None)
    if isinstance(code, CodeType):
        return code
    return function if isroutine(function) else type(function)


def key_of_executable(task: Description) -> Any:
    """Return a task's command line, its numbers left out."""
    line = f"{task.executable} {' '.join(map(str, task.arguments))}"
    return _DIGITS.sub("0", line[:_LINE])


def size_of(task: Description) -> int:
    """Return about how many bytes a task's arguments take, from the arguments, not from what is in them."""
    if not task.args and not task.kwargs:
        return 0
    total = 0
    for value in (*task.args, *task.kwargs.values()):
        if type(value) not in _SMALL:
            try:
                nbytes = getattr(value, "nbytes", None)
                total += nbytes if isinstance(nbytes, int) else sys.getsizeof(value, _UNKNOWN)
            except Exception:  # its attributes are code of the user's
                total += _UNKNOWN
    return total


def weight_of(value: Any) -> int:
    """Return about how many bytes a value takes, with what a container, an object or a function holds itself."""
    if type(value) in _SMALL:
        return 0
    try:
        if isinstance(value, _FUNCTIONS):
            return sum(weight_of(held) for held in held_by(value) if not isinstance(held, _FUNCTIONS))
        held = value.values() if isinstance(value, dict) else value
        if not isinstance(held, list | tuple | set | frozenset | ValuesView):
            held = getattr(value, "__dict__", {}).values()
        return _own_weight(value) + sum(map(_own_weight, islice(held, _SAMPLE)))
    except Exception:  # its attributes are code of the user's
        return _UNKNOWN


def _own_weight(value: Any) -> int:
    if type(value) in _SMALL:
        return 0
    nbytes = getattr(value, "nbytes", None)
    return nbytes if isinstance(nbytes, int) else sys.getsizeof(value, _UNKNOWN)


def held_by(function: Any) -> Iterator[Any]:
    """Yield what travels with a function: what it is bound to, and globals of the script that it names."""
    if isinstance(function, partial):
        yield from (*function.args, *function.keywords.values())
    elif isinstance(function, MethodType):
        yield from getattr(function.__self__, "__dict__", {}).values()
    elif isinstance(function, FunctionType):
        yield from (cell.cell_contents for cell in function.__closure__ or () if cell != _EMPTY)
        if function.__module__ == "__main__":
            scope = function.__globals__
            yield from (scope[name] for name in function.__code__.co_names if name in scope)
