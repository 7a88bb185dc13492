"""What makes a task's description valid: the checks of each kind, and those that all kinds share.

Each raises InvalidTaskError, in a sentence that names the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from rhapsody.errors import InvalidTaskError, describe
from rhapsody.model.description import Description
from rhapsody.model.resources import Resources

_OF_AN_EXECUTABLE: Final = ("arguments", "stdin", "shell")

_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "uid": (str,),
    "kwargs": (Mapping,),
    "executable": (str, Path, type(None)),
    "stdin": (str, bytes, Path, type(None)),
    "cwd": (str, Path, type(None)),
    "environment": (Mapping, type(None)),
    "shell": (bool,),
    "capture_stdio": (bool,),
    "resources": (Resources, type(None)),
    "backend": (str, type(None)),
    "backend_options": (Mapping, type(None)),
}


def check_function(task: Description) -> None:
    """Refuse a function task without a callable, or with fields of an executable."""
    if task.executable is not None:
        refuse(task, "has both a function and an executable; give one of them")
    if not callable(task.function):
        refuse(task, f"function must be callable, not {describe(task.function)}")
    given = [name for name in _OF_AN_EXECUTABLE if getattr(task, name)]
    if given:
        refuse(task, f"has a function and {', '.join(given)}; a function takes args and kwargs")
    check_common(task)
    if task.seed is not None and not _is_seed(task.seed):
        refuse(task, f"seed must be a whole number that is not negative, or several, not {describe(task.seed)}")


def check_executable(task: Description) -> None:
    """Refuse an executable task without an executable, or with fields of a function."""
    if task.executable is None:
        refuse(task, "has neither a function nor an executable; give one of them")
    if task.args or task.kwargs:
        refuse(task, "has an executable and args or kwargs; an executable takes arguments")
    if task.seed is not None:
        refuse(task, "has an executable and a seed; give the executable its seed among its arguments")
    check_common(task)
    if not str(task.executable):
        refuse(task, "executable must not be empty")


def check_common(task: Description) -> None:
    """Refuse fields of the wrong type, whatever the kind; the check of a kind calls it."""
    for name, types in _TYPES.items():
        value = getattr(task, name)
        if not isinstance(value, types):
            wanted = " or ".join(kind.__name__ for kind in types if kind is not type(None))
            refuse(task, f"{name} must be {wanted}, not {describe(value)}")
    for name in ("args", "arguments"):
        value = getattr(task, name)
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            refuse(task, f"{name} must be a list or tuple, not {describe(value)}")
    for key, value in (task.environment or {}).items():
        if not isinstance(key, str) or not isinstance(value, str | None):
            refuse(task, f"environment must map text to text or None, not {describe(key)} to {describe(value)}")
    if not task.uid:
        refuse(task, "uid must not be empty")


def _is_seed(value: object) -> bool:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return len(value) > 0 and all(_is_number(part) for part in value)
    return _is_number(value)


def _is_number(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool) and value.__index__() >= 0


def refuse(task: Description, problem: str) -> NoReturn:
    """Raise InvalidTaskError for a problem of this task."""
    raise InvalidTaskError(f"task {describe(task.uid)} {problem}")
