"""The tasks and shared values that a task names in its arguments, and what takes their places."""

from __future__ import annotations

import copy
import dataclasses
import gc
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from typing import Any, Final

from rhapsody.errors import InvalidTaskError
from rhapsody.model.kinds import EXECUTABLE
from rhapsody.model.shared import Shared, SharedArgument, handles
from rhapsody.model.task import ComputeTask

#: Types of arguments in which no task can be.
PLAIN: Final = frozenset({type(None), bool, int, float, complex, str, bytes})
_TASK: Final = "task"
_SEQUENCE: Final = "sequence"
_MAPPING: Final = "mapping"
_DATACLASS: Final = "dataclass"
_SHARED: Final = "shared"


def named_in(containers: Iterable[Any], without: set[int]) -> list[Any]:
    """Return the tasks and shared values in lists, tuples, values of dicts, and dataclasses, at any depth, each once.

    Args:
        containers: where to search.
        without: identities of objects in which neither was found before, and that are alive; more are added.
    """
    found: dict[Any, None] = {}
    seen: set[int] = set()
    left = [container for container in containers if len(container)]
    while left:
        container = left.pop()
        if id(container) in seen or id(container) in without:
            continue
        seen.add(id(container))
        items = _items_of(container)
        kinds: set[type] = set(map(type, items)) - PLAIN
        roles = {kind: _role_of(kind) for kind in kinds}
        if not any(roles.values()):
            continue
        for item in items:
            role = roles.get(type(item))
            if role is _TASK or role is _SHARED:
                found[item] = None
            elif role is not None and gc.is_tracked(item):  # else it holds nothing but plain values
                left.append(item)
    if not found:
        without |= seen
    return list(found)


def with_values(value: Any, value_of: Callable[[ComputeTask], Any]) -> Any:
    """Return a value with each task in it replaced; what holds no task is not copied.

    Raises:
        InvalidTaskError: a container that holds a task holds itself, or is nested too deeply.
    """
    return _with(value, _TASK, value_of)


def fill_in_shared(task: ComputeTask, *, remote: bool) -> None:
    """Put shared values in place of their handles; where the backend is `remote`, what stands for them on the way.

    Raises:
        InvalidTaskError: as `with_values` does.
    """
    found: list[Shared[Any]] = []

    def replace(given: Shared[Any] | SharedArgument) -> Any:
        handle = given if isinstance(given, Shared) else given.handle
        found.append(handle)
        return SharedArgument(handle) if remote else handle.value

    task.args = _with(task.args, _SHARED, replace)
    task.kwargs = _with(task.kwargs, _SHARED, replace)
    handles[task] = found


def _with(value: Any, replaces: str, by: Callable[[Any], Any]) -> Any:
    try:
        return _replaced(value, replaces, by, set())
    except RecursionError:
        raise InvalidTaskError("an argument that holds a task or a shared value is nested too deeply") from None


def value_of(task: ComputeTask) -> Any:
    """Return what a DONE task hands to those that name it in their arguments."""
    return task.stdout if task.kind is EXECUTABLE else task.return_value


def _replaced(value: Any, replaces: str, by: Callable[[Any], Any], within: set[int]) -> Any:
    role = _role_of(type(value))  # type: ignore[arg-type]  # a class is hashable
    if role is replaces:
        return by(value)
    if role is None or role is _TASK or role is _SHARED:
        return value
    if id(value) in within:
        raise InvalidTaskError("an argument that holds a task or a shared value also holds itself")
    within.add(id(value))
    old = list(_items_of(value))
    new = [_replaced(item, replaces, by, within) for item in old]
    within.discard(id(value))
    if all(one is other for one, other in zip(old, new, strict=True)):
        return value
    return _rebuilt(value, role, new)


def _rebuilt(value: Any, role: str, items: list[Any]) -> Any:
    """Return a container of the same type with other items."""
    if role is _SEQUENCE:
        if isinstance(value, tuple):
            make = getattr(type(value), "_make", type(value))  # of a named tuple
            return make(items)
        made = copy.copy(value)
        made[:] = items
    elif role is _MAPPING:
        made = copy.copy(value)
        made.update(zip(value, items, strict=True))
    else:
        made = copy.copy(value)
        for field, item in zip(_fields_of(value), items, strict=True):
            object.__setattr__(made, field, item)  # also of one that is frozen
    return made


@lru_cache(maxsize=1024)
def _role_of(kind: type) -> str | None:
    if issubclass(kind, ComputeTask):
        return _TASK
    if issubclass(kind, Shared | SharedArgument):
        return _SHARED
    if issubclass(kind, list | tuple):
        return _SEQUENCE
    if issubclass(kind, dict):
        return _MAPPING
    return _DATACLASS if dataclasses.is_dataclass(kind) else None


def _items_of(container: Any) -> Collection[Any]:
    """Return what a container holds; of a dict its values."""
    if isinstance(container, dict):
        return container.values()
    if isinstance(container, list | tuple):
        return container
    return [getattr(container, name) for name in _fields_of(container)]


def _fields_of(container: Any) -> list[str]:
    """Return the names of a dataclass's fields that are set."""
    return [field.name for field in dataclasses.fields(container) if hasattr(container, field.name)]
