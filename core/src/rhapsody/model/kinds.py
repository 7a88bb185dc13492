"""The kinds of task: FUNCTION and EXECUTABLE.

A kind is a constant, compared by identity. How its tasks travel is in `protocol.encoders`, and what a worker does with
them in `worker.runners`, both by kind. A further kind is a record as those below, an entry in each of those tables, and
a subclass of ComputeTask that has the record as `kind` and leaves `function` None; no other module changes.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, Final, Protocol, SupportsIndex

import attrs

from rhapsody.model.checks import check_executable, check_function
from rhapsody.model.description import Description
from rhapsody.model.identity import key_of_executable, key_of_function


@attrs.frozen(kw_only=True, eq=False)
class Kind:
    """One kind of task.

    Attributes:
        name: identifies the kind, also to workers.
        capability: the field of BackendCapabilities that a backend sets where it runs such tasks; in errors
            their plural.
        check: refuses a description that is invalid, with InvalidTaskError.
        key: returns something hashable; tasks of the same key are expected to take equally long.
        module: imported by a worker that does not know the kind yet; it registers what a worker does with such tasks.
    """

    name: str
    capability: str
    check: Callable[[Any], None]
    key: Callable[[Any], Any]
    module: str | None = None

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """Travel by name, since kinds are compared by identity."""
        if self in (FUNCTION, EXECUTABLE):
            return self.name.upper()
        return super().__reduce_ex__(protocol)


#: The kind of a task with a `function`.
FUNCTION: Final = Kind(name="function", capability="functions", check=check_function, key=key_of_function)
#: The kind of a task with an `executable`.
EXECUTABLE: Final = Kind(name="executable", capability="executables", check=check_executable, key=key_of_executable)


class _Task(Description, Protocol):
    @property
    def kind(self) -> Kind: ...


def key_of(task: _Task) -> Any:
    """Return what batching knows a task by: a function's code, and for the others what their kind says."""
    function: Any = task.function
    if type(function) is FunctionType:
        return function.__code__
    try:
        return task.kind.key(task)
    except Exception:  # its attributes and its text are code of the user's
        return type(function)
