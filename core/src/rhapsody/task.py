"""What a user describes, submits and reads results from: `ComputeTask` and its `Resources`."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import attrs

from .errors import InvalidTaskError, SessionError, describe
from .states import FINAL_STATES, TaskState

_numbers = itertools.count(1)


class _NoKeywords(dict[str, Any]):
    """The kwargs of every task that has none: one object, since the garbage collector's work grows with each."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("this task was made without kwargs; give them to ComputeTask(kwargs=...)")

    __setitem__ = __ior__ = setdefault = update = _refuse


_NO_KEYWORDS: Final = _NoKeywords()
_NEW: Final = TaskState.NEW


@attrs.frozen(kw_only=True)
class Resources:
    """What one task needs of the machine; a backend refuses at submit what it cannot give.

    Attributes:
        ranks: processes that make up the task (MPI ranks).
        cores_per_rank: processor cores for each rank.
        gpus_per_rank: GPUs for each rank; a fraction shares one.
        memory: bytes for the whole task; None leaves it to the backend.
    """

    ranks: int = attrs.field(default=1, validator=[attrs.validators.instance_of(int), attrs.validators.ge(1)])
    cores_per_rank: int = attrs.field(default=1, validator=[attrs.validators.instance_of(int), attrs.validators.ge(1)])
    gpus_per_rank: float = attrs.field(default=0, validator=attrs.validators.ge(0))
    memory: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))


@attrs.define(init=False, eq=False, weakref_slot=True)
class ComputeTask:
    """One unit of work: a Python function, or an executable.

    Attributes:
        function: called as `function(*args, **kwargs)`; a coroutine function is awaited on a loop of the worker.
        args: positional arguments of the function.
        kwargs: keyword arguments of the function.
        executable: the program to run, a name on PATH or a path; with `shell=True` a command line for `/bin/sh`.
        arguments: the program's arguments; each is turned into text, and quoted where `shell=True`.
        stdin: what the program reads; text is encoded as UTF-8. None: nothing.
        cwd: the folder in which the program runs. None: the worker's own.
        environment: variables added to the worker's own for the program.
        shell: run `executable` and the quoted `arguments` through `/bin/sh -c`.
        capture_stdio: write stdout and stderr to files in the session's sandbox (`stdout_path`, `stderr_path`)
            instead of keeping them in memory, where the first and last 8 MiB of each are kept.
        resources: what the task needs. None: one slot of the backend.
        backend: the name of the backend in the session. None: the session's first.
        backend_options: further options in the engine's own words; the backend refuses the ones it does not know.
        uid: the task's name, unique in its session. Default: `task.000001`, counted in this process.
        state: where the task is in its life.
        return_value: what the function returned.
        stdout: what the program wrote, decoded as UTF-8 with undecodable bytes replaced.
        stderr: likewise.
        exit_code: what the program returned; negative for the signal that ended it.
        exception: why the task failed or was canceled.
        submitted_at: seconds since the epoch, as are `started_at` and `ended_at`.
        ran_on: host and process that ran the task, where the engine tells.
        attempt: counts the times that the task was started, from 1.

    The description must not be changed once the task is submitted. `await task` waits for its end without ever
    canceling it, and returns the task, or raises what its future would: the function's own exception,
    TaskExecutionError for an executable, TaskCanceledError. `task["stdout"]` and `task.get("stdout")` read the
    same attributes.

    Raises:
        InvalidTaskError: neither or both of `function` and `executable`, a field that the other kind of task has, or
            a field of the wrong type.
    """

    function: Callable[..., Any] | None
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    executable: str | Path | None
    arguments: Sequence[Any]
    stdin: str | bytes | None
    cwd: str | Path | None
    environment: Mapping[str, str] | None
    shell: bool
    capture_stdio: bool
    resources: Resources | None
    backend: str | None
    backend_options: Mapping[str, Any] | None
    uid: str

    state: TaskState
    return_value: Any = attrs.field(repr=False)
    stdout: str | None = attrs.field(repr=False)
    stderr: str | None = attrs.field(repr=False)
    exit_code: int | None
    exception: BaseException | None
    stdout_path: str | None = attrs.field(repr=False)
    stderr_path: str | None = attrs.field(repr=False)
    submitted_at: float | None = attrs.field(repr=False)
    started_at: float | None = attrs.field(repr=False)
    ended_at: float | None = attrs.field(repr=False)
    ran_on: str | None = attrs.field(repr=False)
    attempt: int = attrs.field(repr=False)
    _named: bool = attrs.field(repr=False)  # whether the user chose the uid
    _loop: asyncio.AbstractEventLoop | None = attrs.field(repr=False)  # of its session, until it ends
    _future: asyncio.Future[ComputeTask] | None = attrs.field(repr=False)  # made when somebody asks for it
    _unit: Any = attrs.field(repr=False)  # the batch that holds it, while an engine does
    _traceback: TracebackType | None = attrs.field(repr=False)  # of `exception`, as it came: each raise adds to it

    # By hand, since this is a third of what a task costs: the one that attrs writes looks every default up, and takes
    # half as long again.
    def __init__(
        self,
        *,
        function: Callable[..., Any] | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        executable: str | Path | None = None,
        arguments: Sequence[Any] = (),
        stdin: str | bytes | None = None,
        cwd: str | Path | None = None,
        environment: Mapping[str, str] | None = None,
        shell: bool = False,
        capture_stdio: bool = False,
        resources: Resources | None = None,
        backend: str | None = None,
        backend_options: Mapping[str, Any] | None = None,
        uid: str | None = None,
    ) -> None:
        self.function = function
        self.args = args
        self.kwargs = _NO_KEYWORDS if kwargs is None else kwargs
        self.executable = executable
        self.arguments = arguments
        self.stdin = stdin
        self.cwd = cwd
        self.environment = environment
        self.shell = shell
        self.capture_stdio = capture_stdio
        self.resources = resources
        self.backend = backend
        self.backend_options = backend_options
        self.uid = f"task.{next(_numbers):06d}" if uid is None else uid
        self._named = uid is not None
        self.state = _NEW
        self.return_value = self.exception = self.exit_code = None
        self.stdout = self.stderr = self.stdout_path = self.stderr_path = None
        self.submitted_at = self.started_at = self.ended_at = self.ran_on = None
        self.attempt = 0
        self._loop = self._future = self._unit = self._traceback = None
        if (
            function is None
            or executable is not None
            or not callable(function)
            or arguments
            or type(args) is not tuple
            or not (kwargs is None or type(kwargs) is dict)
            or not (backend is None or type(backend) is str)
            or stdin is not None
            or cwd is not None
            or environment is not None
            or shell is not False
            or capture_stdio is not False
            or resources is not None
            or backend_options is not None
            or uid is not None
        ):  # beside the common case
            self._check()

    def _check(self) -> None:
        """Refuse a description that makes no sense, where it is written."""
        if self.function is not None:
            if self.executable is not None:
                self._refuse("has both a function and an executable; give one of them")
            if not callable(self.function):
                self._refuse(f"function must be callable, not {describe(self.function)}")
            given = [name for name in _OF_AN_EXECUTABLE if getattr(self, name)]
            if given:
                self._refuse(f"has a function and {', '.join(given)}; a function takes args and kwargs alone")
        elif self.executable is None:
            self._refuse("has neither a function nor an executable; give one of them")
        elif self.args or self.kwargs:
            self._refuse("has an executable and args or kwargs; an executable takes arguments")
        self._check_types()

    def _check_types(self) -> None:
        for name, kinds in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kinds):
                wanted = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
                self._refuse(f"{name} must be {wanted}, not {describe(value)}")
        for name in ("args", "arguments"):
            value = getattr(self, name)
            if isinstance(value, str | bytes) or not isinstance(value, Sequence):
                self._refuse(f"{name} must be a list or tuple, not {describe(value)}")
        if not self.uid:
            self._refuse("uid must not be empty")
        if self.executable is not None and not str(self.executable):
            self._refuse("executable must not be empty")
        for key, value in (self.environment or {}).items():
            if not isinstance(key, str) or not isinstance(value, str):
                self._refuse(f"environment must map text to text, not {describe(key)} to {describe(value)}")
        self.args = tuple(self.args)

    def _refuse(self, problem: str) -> NoReturn:
        raise InvalidTaskError(f"task {describe(self.uid)} {problem}")

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Self:
        """Build a task from a mapping of the same fields.

        Raises:
            InvalidTaskError: a field that a task does not have.
        """
        unknown = [key for key in description if key not in _DESCRIPTION]
        if unknown:
            uid = description.get("uid", "(no uid)")
            raise InvalidTaskError(
                f"task {describe(uid)} has unknown fields {', '.join(map(repr, unknown))}; "
                f"a task has {', '.join(_DESCRIPTION)}"
            )
        return cls(**description)

    def __getitem__(self, field: str) -> Any:
        """Read an attribute by name."""
        if field.startswith("_") or not hasattr(type(self), field):
            raise KeyError(field)
        return getattr(self, field)

    def get(self, field: str, default: Any = None) -> Any:
        """Read an attribute by name; `default` where the task has no such attribute or it is None."""
        try:
            value = self[field]
        except KeyError:
            return default
        return default if value is None else value

    @property
    def is_final(self) -> bool:
        """Whether the task has ended."""
        return self.state in FINAL_STATES

    def result(self) -> Self:
        """Return the ended task, or raise why it failed or was canceled.

        Raises:
            SessionError: the task has not ended.
        """
        if self.state is TaskState.DONE:
            return self
        if self.exception is not None:
            raise self._error()
        raise SessionError(f"task {self.uid} has not ended: it is {self.state}")

    def _error(self) -> BaseException:
        """Return why the task failed, as if it was never raised before: many tasks may share one exception."""
        assert self.exception is not None
        return self.exception.with_traceback(self._traceback)

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the traceback, which cannot leave the process."""
        return {field.name: getattr(self, field.name) for field in attrs.fields(type(self))} | {"_traceback": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Take the fields."""
        for name, value in state.items():
            setattr(self, name, value)

    def __await__(self) -> Generator[Any, None, Self]:
        """Wait for the end of the task; giving up the wait leaves the task alone."""
        if self.state is TaskState.NEW:
            raise SessionError(f"task {self.uid} was not submitted: await session.submit_tasks([task]) first")
        while self.state not in FINAL_STATES:
            yield from self._ended().__await__()
        return self.result()

    def _shared(self) -> asyncio.Future[ComputeTask]:
        """Return the future of the task, which was submitted and has not ended; made where there is none."""
        assert self._loop is not None
        if self._future is None or self._future.cancelled():  # whoever had canceled it has given up for himself alone
            self._future = self._loop.create_future()
        return self._future

    def _ended(self) -> asyncio.Future[None]:
        """Return a future of the waiter's own: canceling it cancels nobody else's."""
        shared = self._shared()
        waiter: asyncio.Future[None] = shared.get_loop().create_future()

        def wake(_: object) -> None:
            if not waiter.done():
                waiter.set_result(None)

        shared.add_done_callback(wake)
        waiter.add_done_callback(lambda _: shared.remove_done_callback(wake))
        return waiter


_OF_AN_EXECUTABLE: Final = ("arguments", "stdin", "cwd", "environment", "shell", "capture_stdio")
_KINDS: Final[dict[str, tuple[type, ...]]] = {
    "uid": (str,),
    "kwargs": (Mapping,),
    "executable": (str, Path, type(None)),
    "stdin": (str, bytes, type(None)),
    "cwd": (str, Path, type(None)),
    "environment": (Mapping, type(None)),
    "shell": (bool,),
    "capture_stdio": (bool,),
    "resources": (Resources, type(None)),
    "backend": (str, type(None)),
    "backend_options": (Mapping, type(None)),
}
_DESCRIPTION: Final = tuple(inspect.signature(ComputeTask).parameters)
