"""How the tasks of a batch travel, by kind; the table that a further kind adds its encoder to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from rhapsody.model.kinds import EXECUTABLE, FUNCTION, Kind
from rhapsody.model.shared import sending
from rhapsody.model.task import ComputeTask
from rhapsody.protocol.command import command_of, environment_of, folder_of
from rhapsody.protocol.encoding import dumps
from rhapsody.protocol.frames import Call, Setting
from rhapsody.protocol.imports import Imports, imports, note_reloads
from rhapsody.protocol.kept import Keeping
from rhapsody.protocol.shared import Stored
from rhapsody.protocol.trace import TRACE, trace_of

_ATOMS: Final = frozenset({type(None), bool, int, float, complex, str, bytes})  # sharing a small one saves nothing
Environments = Mapping[str, Mapping[str, str]]  # variables that the backend sets for tasks, by uid
_SHARE_ABOVE: Final = 1024  # bytes of text or binary that are worth sending once instead of per task


class Encoder(Protocol):
    """Encodes the tasks of one kind in one batch.

    What it returns is plain data, which unpickles without an import: one task's bad data must not fail the batch.
    """

    def encode(self, task: ComputeTask) -> Any:
        """Return what travels of one task.

        Raises:
            Exception: it cannot; the task fails with SerializationError, and the others travel.
        """

    def common(self) -> Any:
        """Return what the encoded tasks have in common; asked after the last of them."""


class _Functions:
    """Function tasks: each function, and each argument that several tasks share, is pickled once for the batch."""

    def __init__(self, tasks: Sequence[ComputeTask], sandbox: Path, given: Environments) -> None:
        self._tasks = tasks
        self._given = given
        self._functions: list[bytes | Stored] = []
        self._places: dict[int, int] = {}  # of functions, by identity: the tasks keep them alive
        self._keeping: dict[int, Keeping] = {}  # likewise, of tasks whose results are kept
        self._shared = _Shared(tasks)

    def encode(self, task: ComputeTask) -> Call:
        function: Any = task.function
        if task.policies is not None and task.policies.keep:
            function = self._keeping.setdefault(id(function), Keeping(function))
        place = self._places.get(id(function))
        if place is None:
            note_reloads(task.function)
            stored = sending.stored.get(id(function))
            self._functions.append(stored or dumps(function, partial(self._sharing, function)))
            place = self._places[id(function)] = len(self._functions) - 1
        if (
            self._given
            or task.seed is not None
            or task.cwd is not None
            or task.environment is not None
            or task.capture_stdio
            or (task.context is not None and task.context.get(TRACE) is not None)
        ):
            return *self._shared.call(place, task)[:3], self._setting(task)
        return self._shared.call(place, task)

    def _setting(self, task: ComputeTask) -> Setting | None:
        seed = task.seed
        numbers = None if seed is None else tuple(map(int, seed if isinstance(seed, Sequence) else (seed,)))
        trace = trace_of(task)
        carried = None if trace is None else (trace.trace_id, trace.flags)  # plain, as all of a frame
        variables = environment_of(task, self._given.get(task.uid))
        setting = numbers, folder_of(task), variables, carried, task.capture_stdio
        return None if setting == (None, None, None, None, False) else setting

    def _sharing(self, function: object) -> list[str]:
        """Return the tasks that draw from a copy of what is in a function; those with a seed do not."""
        return [task.uid for task in self._tasks if task.function is function and task.seed is None]

    def common(self) -> tuple[list[bytes | Stored], list[bytes | Stored], Imports | None]:
        return self._functions, self._shared.values, imports()


class _Executables:
    """Executable tasks: each is a `Command`, as a plain tuple."""

    def __init__(self, tasks: Sequence[ComputeTask], sandbox: Path, given: Environments) -> None:
        self._sandbox = sandbox
        self._given = given

    def encode(self, task: ComputeTask) -> tuple[Any, ...]:
        return tuple(command_of(task, self._sandbox, self._given.get(task.uid)))

    def common(self) -> None:
        return None


#: By kind: makes the encoder of a batch, from its tasks, the session's sandbox and what the backend sets for tasks.
ENCODERS: Final[dict[Kind, Callable[[Sequence[ComputeTask], Path, Environments], Encoder]]] = {
    FUNCTION: _Functions,
    EXECUTABLE: _Executables,
}


class _Shared:
    """Arguments that several tasks of a batch have in common, pickled once, or that are stored.

    Each task gets its own copy of it.
    """

    def __init__(self, tasks: Sequence[ComputeTask]) -> None:
        self.values: list[bytes | Stored] = []
        self._tasks = tasks
        self._numbers: dict[int, int] = {}
        self._ids: set[int] = {*sending.stored}
        if len(tasks) > 1:
            seen = Counter(
                id(value)
                for task in tasks
                if task.args or task.kwargs
                for value in (*task.args, *task.kwargs.values())
                if type(value) not in _ATOMS or (type(value) in (str, bytes) and len(value) > _SHARE_ABOVE)
            )
            self._ids |= {key for key, count in seen.items() if count > 1}

    def call(self, function: int, task: ComputeTask) -> Call:
        args, kwargs = task.args, task.kwargs
        if not args and not kwargs:
            return function, None, (), None
        kwargs = dict(kwargs)
        if not self._ids:
            return function, dumps((args, kwargs), lambda: (task.uid,)), (), None
        filled: list[tuple[int | str, int]] = []
        own = list(args)
        for index, value in enumerate(args):
            if id(value) in self._ids:
                filled.append((index, self._number(value)))
                own[index] = None
        for key, value in task.kwargs.items():
            if id(value) in self._ids:
                filled.append((key, self._number(value)))
                kwargs[key] = None
        return function, dumps((own, kwargs), lambda: (task.uid,)), tuple(filled), None

    def _sharing(self, value: object) -> list[str]:
        tasks = self._tasks
        return [task.uid for task in tasks if any(each is value for each in (*task.args, *task.kwargs.values()))]

    def _number(self, value: Any) -> int:
        number = self._numbers.get(id(value))
        if number is None:
            stored = sending.stored.get(id(value))
            self.values.append(stored or dumps(value, partial(self._sharing, value)))
            number = self._numbers[id(value)] = len(self.values) - 1
        return number
