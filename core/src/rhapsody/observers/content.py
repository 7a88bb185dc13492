"""What a task is by its content: a key that is the same whenever the same task is described again."""

from __future__ import annotations

import functools
import hashlib
import inspect
import pickle
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any, Final

import attrs
import cloudpickle

from rhapsody.errors import describe
from rhapsody.model.kinds import EXECUTABLE, FUNCTION
from rhapsody.model.task import ComputeTask

ATOMS: Final = frozenset({type(None), bool, int, float, complex, str, bytes})  # nothing can change them
_TEXT: Final = 80  # characters of arguments that a key, or a description, shows as they are
_DEPTH: Final = 50  # of containers in each other; what is deeper is pickled


@attrs.frozen(eq=False)
class Call:
    """What one or more tasks run.

    Attributes:
        key: equal for equal content; None where the content cannot be read.
        name: of the function, with its module; or the executable.
        text: the call, or the command line, shortened.
    """

    key: str | None
    name: str
    text: str


class Contents:
    """Reads the content of tasks. Remembers the digests of functions, and the keys of tasks that depend on others."""

    def __init__(self) -> None:
        self._functions: weakref.WeakKeyDictionary[Any, tuple[str, Call]] = weakref.WeakKeyDictionary()
        self._tasks: weakref.WeakKeyDictionary[ComputeTask, Call] = weakref.WeakKeyDictionary()
        self._last: tuple[Any, Call | None] = None, None  # a function, and its call without arguments

    def call_of(self, task: ComputeTask) -> Call:
        """Return what a task runs; nothing that is wrong with its arguments raises."""
        function = task.function
        if (
            function is self._last[0]
            and self._last[1] is not None
            and not task.args
            and not task.kwargs
            and task.seed is None
            and task.cwd is None
            and task.environment is None
        ):  # the common case, and four times as fast
            return self._last[1]
        known = self._tasks.get(task) if self._tasks else None
        if known is not None:
            return known
        try:
            if task.kind is FUNCTION:
                return self._function(task)
            return self._executable(task) if task.kind is EXECUTABLE else Call(None, task.kind.name, describe(task))
        except Exception as error:  # arguments run code of the user's when they are pickled
            name = name_of(task.function) if task.kind is FUNCTION else str(task.executable)
            return Call(None, name, f"{name}: cannot be identified: {describe(error)}")

    def _function(self, task: ComputeTask) -> Call:
        prefix, plain = self._identified(task.function)
        where = [task.seed, task.cwd and str(task.cwd), task.environment and dict(task.environment)]
        if where != [None, None, None]:
            prefix += f"@{_digest(self._pieces(where, 0))[:16]}"
            plain = Call(prefix, plain.name, plain.text)
        elif not task.args and not task.kwargs:
            self._last = task.function, plain
            return plain
        if not task.args and not task.kwargs:
            return plain
        name = plain.name
        arguments = [task.args, dict(task.kwargs)] if task.kwargs else [task.args]
        if ATOMS.issuperset(map(type, task.args)) and ATOMS.issuperset(map(type, task.kwargs.values())):
            text = repr(arguments)
            shown = text if len(text) <= _TEXT else _digest([text.encode()])
            return Call(f"{prefix}{shown}", name, _call(name, task, repr))
        call = Call(f"{prefix}{_digest(self._pieces(arguments, 0))}", name, _call(name, task, _shown))
        if any(isinstance(value, ComputeTask) for value in (*task.args, *task.kwargs.values())):
            self._tasks[task] = call  # a long chain of tasks is read link by link
        return call

    def _executable(self, task: ComputeTask) -> Call:
        command = [str(task.executable), *map(str, task.arguments)]
        parts: list[Any] = [command, task.stdin, task.cwd and str(task.cwd), task.shell]
        parts.append(task.environment and dict(task.environment))
        parts += [task.resources and repr(task.resources), *map(_file, _inputs(task))]
        line = " ".join(command)
        return Call(
            _digest(self._pieces(parts, 0)), Path(command[0]).name, line if len(line) <= 500 else line[:497] + "..."
        )

    def _identified(self, function: Any) -> tuple[str, Call]:
        """Return the prefix of the keys of a function's calls, and the call without arguments."""
        try:
            known = self._functions.get(function)
        except TypeError:  # it cannot be hashed, or not be referred to weakly
            known = None
        if known is None:
            name = name_of(function)
            prefix = f"{name}#{_digest(self._function_pieces(function, 0))[:16]}"
            known = prefix, Call(prefix, name, f"{name}()")
            try:
                self._functions[function] = known
            except TypeError:
                pass
        return known

    def _function_pieces(self, function: Any, depth: int) -> Iterator[bytes]:
        """Yield what makes a function: its name, code, defaults, and what it holds."""
        if isinstance(function, functools.partial):
            yield b"partial"
            yield from self._function_pieces(function.func, depth + 1)
            yield from self._pieces([function.args, function.keywords], depth + 1)
        elif isinstance(function, MethodType):
            yield from self._function_pieces(function.__func__, depth + 1)
            yield from self._pieces(function.__self__, depth + 1)
        elif isinstance(function, FunctionType):
            yield name_of(function).encode()
            yield from _code_pieces(function.__code__)
            held = [cell.cell_contents for cell in function.__closure__ or () if cell_is_set(cell)]
            yield from self._pieces([function.__defaults__, function.__kwdefaults__, held], depth + 1)
        elif inspect.isroutine(function) or isinstance(function, type):
            yield name_of(function).encode()
        else:
            yield name_of(type(function)).encode()
            yield cloudpickle.dumps(function)

    def _pieces(self, value: Any, depth: int) -> Iterator[bytes]:
        """Yield bytes that are equal for equal values: containers by their items, sets in an order of their own."""
        kind = type(value)
        if kind in ATOMS:
            yield f"{kind.__name__}:{value!r};".encode()
        elif isinstance(value, ComputeTask):
            yield f"task:{self.call_of(value).key or value.uid};".encode()
        elif depth > _DEPTH:
            yield cloudpickle.dumps(value)
        elif kind in (list, tuple):
            yield f"{kind.__name__}:{len(value)}[".encode()
            for item in value:
                yield from self._pieces(item, depth + 1)
        elif kind is dict:
            yield f"dict:{len(value)}[".encode()
            for key, item in value.items():
                yield from self._pieces(key, depth + 1)
                yield from self._pieces(item, depth + 1)
        elif kind in (set, frozenset):
            yield f"{kind.__name__}:{len(value)}[".encode()
            yield from sorted(b"".join(self._pieces(item, depth + 1)) for item in value)
        elif isinstance(value, FunctionType | MethodType | functools.partial):
            yield from self._function_pieces(value, depth + 1)
        else:
            buffers: list[pickle.PickleBuffer] = []
            yield cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
            for buffer in buffers:
                yield buffer.raw().tobytes()


def cell_is_set(cell: Any) -> bool:
    """Whether a closure's cell holds something yet."""
    try:
        cell.cell_contents  # noqa: B018  # reading it is the question
    except ValueError:
        return False
    return True


def name_of(function: Any) -> str:
    """Return a function's module and qualified name; of what has none, those of its type."""
    function = getattr(function, "func", function) if isinstance(function, functools.partial) else function
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{getattr(function, '__module__', None) or type(function).__module__}.{name}"


def _code_pieces(code: CodeType) -> Iterator[bytes]:
    """Yield what a code object does, without where it is written."""
    yield code.co_code
    yield repr((code.co_names, code.co_varnames, code.co_freevars, code.co_flags)).encode()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code_pieces(constant)
        elif isinstance(constant, frozenset):
            yield repr(sorted(map(repr, constant))).encode()
        else:
            yield repr(constant).encode()


def _digest(pieces: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _call(name: str, task: ComputeTask, show: Callable[[Any], str]) -> str:
    """Write a call as Python does, shortened."""
    shown = [show(value) for value in task.args[:10]]
    shown += ["..."] if len(task.args) > 10 else [f"{key}={show(value)}" for key, value in task.kwargs.items()]
    text = ", ".join(shown)
    return f"{name}({text if len(text) <= _TEXT else text[: _TEXT - 3] + '...'})"


def _shown(value: Any) -> str:
    if isinstance(value, ComputeTask):
        return value.uid
    if type(value) in ATOMS:
        return repr(value)
    shape = getattr(value, "shape", None)
    size = f" {shape}" if shape else f" of {len(value)}" if isinstance(value, list | tuple | dict | set) else ""
    return f"<{type(value).__name__}{size}>"


def _inputs(task: ComputeTask) -> list[str]:
    given: Any = getattr(task, "input_files", None) or ()
    return [str(item) for item in (given.items() if isinstance(given, Mapping) else given)]


def _file(path: str) -> list[Any]:
    """Identify an input file by path, size and time of its last change."""
    try:
        found = Path(path).stat()
    except OSError:
        return [path]
    return [path, found.st_size, found.st_mtime_ns]
