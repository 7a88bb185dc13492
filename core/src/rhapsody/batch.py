"""A batch of tasks on its way to an engine, and the bytes that stand for it; `rhapsody.worker` is the far end."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from . import worker
from ._executable import Command, Finished, command_line
from .errors import SerializationError, TaskExecutionError, describe
from .events import Outcome
from .states import TaskState

if TYPE_CHECKING:
    from .context import BackendContext
    from .task import ComputeTask

_ATOMS: Final = frozenset({type(None), bool, int, float, complex, str, bytes})  # sharing a small one saves nothing
_SHARE_ABOVE: Final = 1024  # bytes of text or binary that are worth sending once instead of per task


class TaskBatch:
    """Tasks that the engine runs as one unit, one after the other.

    Attributes:
        uid: counts the batches of one backend, from 1.
        tasks: in the order in which they run.
        shipped: those of them that `encode` could pickle, in the order of their frames.
    """

    __slots__ = ("_context", "learns", "left", "shipped", "spare", "submitted_at", "tasks", "uid", "work")

    def __init__(self, uid: int, tasks: Sequence[ComputeTask], context: BackendContext) -> None:
        self.uid = uid
        self.tasks = tuple(tasks)
        self.shipped = self.tasks
        self.left = len(self.tasks)  # of them that have not ended; this and what follows are the runner's
        self.learns = False  # whether the default batching made it, and learns from it
        self.work = 0.0  # seconds that its tasks took, so far
        self.submitted_at = 0.0  # by time.perf_counter
        self.spare = False  # whether it was submitted while every slot was taken
        self._context = context

    def __len__(self) -> int:
        """Return the number of tasks."""
        return len(self.tasks)

    def __repr__(self) -> str:
        """Name the batch and its size."""
        return f"<TaskBatch {self.uid} of {len(self.tasks)} tasks for {self._context.backend}>"

    def encode(self) -> bytes:
        """Return the batch as bytes for `rhapsody.worker.run_batch`.

        A task that cannot be pickled is left out, and reported FAILED with SerializationError.
        """
        functions: list[bytes] = []
        places: dict[int, int] = {}  # of functions, by identity: the tasks keep them alive
        shared = _Shared(self.tasks)
        items: list[tuple[str, worker.Call | None, tuple[Any, ...] | None]] = []
        refused: list[Outcome] = []
        for task in self.tasks:
            try:
                if task.function is None:
                    items.append((task.uid, None, tuple(command_of(task, self._context.sandbox_path))))
                    continue
                place = places.get(id(task.function))
                if place is None:
                    functions.append(worker.dumps(task.function))
                    place = places[id(task.function)] = len(functions) - 1
                items.append((task.uid, shared.call(place, task), None))
            except Exception as error:
                refused.append(self._refuse(task, error))
        if refused:
            gone = {outcome.uid for outcome in refused}
            self.shipped = tuple(task for task in self.tasks if task.uid not in gone)
            self._context.events.put(refused)
        return pickle.dumps((self._context.session, functions, shared.values, items), pickle.HIGHEST_PROTOCOL)

    def decode(self, data: bytes | bytearray | memoryview, ran_on: str | None = None) -> list[Outcome]:
        """Read what `run_batch` returned or reported.

        Args:
            data: frames.
            ran_on: recorded as the tasks' place, where the frames tell none.
        """
        return [outcome_of(frame, ran_on) for frame in worker.frames(data)]

    def _refuse(self, task: ComputeTask, error: Exception) -> Outcome:
        described = worker.describe_exception(error, "arguments")
        problem = SerializationError(
            f"task {task.uid}: its function or arguments cannot travel to a worker of backend "
            f"{self._context.backend!r}: {described.type_name}: {described.message}; pass what can be pickled, or use "
            f"a backend of threads",
            described.type_name,
            described.trace,
        )
        problem.__cause__ = error
        return Outcome(task.uid, TaskState.FAILED, exception=problem)


class _Shared:
    """Arguments that several tasks of a batch have in common, pickled once; each task gets its own copy of it."""

    def __init__(self, tasks: Sequence[ComputeTask]) -> None:
        self.values: list[bytes] = []
        self._numbers: dict[int, int] = {}
        self._ids: set[int] = set()
        if len(tasks) > 1:
            seen = Counter(
                id(value)
                for task in tasks
                if task.args or task.kwargs
                for value in (*task.args, *task.kwargs.values())
                if type(value) not in _ATOMS or (type(value) in (str, bytes) and len(value) > _SHARE_ABOVE)
            )
            self._ids = {key for key, count in seen.items() if count > 1}

    def call(self, function: int, task: ComputeTask) -> worker.Call:
        args, kwargs = task.args, task.kwargs
        if not args and not kwargs:
            return function, None, ()
        kwargs = dict(kwargs)
        if not self._ids:
            return function, worker.dumps((args, kwargs)), ()
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
        return function, worker.dumps((own, kwargs)), tuple(filled)

    def _number(self, value: Any) -> int:
        number = self._numbers.get(id(value))
        if number is None:
            self.values.append(worker.dumps(value))
            number = self._numbers[id(value)] = len(self.values) - 1
        return number


def command_of(task: ComputeTask, sandbox: Path) -> Command:
    """Translate the description of an executable for the operating system.

    Args:
        task: an executable task.
        sandbox: the session's folder; captured output goes to `UID.out` and `UID.err` in it.
    """
    assert task.executable is not None
    name = quote(task.uid, safe="")
    return Command(
        argv=command_line(str(task.executable), [str(argument) for argument in task.arguments], task.shell),
        shell=task.shell,
        cwd=str(task.cwd) if task.cwd is not None else None,
        environment={_plain(name): _plain(value) for name, value in (task.environment or {}).items()} or None,
        stdin=task.stdin.encode() if isinstance(task.stdin, str) else task.stdin,
        stdout_path=str(sandbox / f"{name}.out") if task.capture_stdio else None,
        stderr_path=str(sandbox / f"{name}.err") if task.capture_stdio else None,
    )


#: What a string says, whatever its class: that of a script's enumeration is not there on a worker.
_plain = str.__str__


def outcome_of(frame: worker.Frame, ran_on: str | None = None) -> Outcome:
    """Translate a worker's frame into the outcome that a backend reports."""
    uid, kind, value, started_at, ended_at, host = frame
    if kind == "value":  # by position, which takes half as long
        done, place = TaskState.DONE, host or ran_on
        return Outcome(uid, done, value, None, None, None, None, None, None, started_at, ended_at, place)
    state, command = TaskState.DONE, None
    exception: BaseException | None = None
    if kind == "pickle":
        try:
            value = pickle.loads(value)
        except BaseException as error:
            value, state = None, TaskState.FAILED
            exception = _cannot_load(uid, "result", error)
    elif kind == "raised":
        exception = _exception_of(uid, worker.Raised(*value))
        value, state = None, TaskState.FAILED
    elif kind == "skipped":
        return Outcome(uid, TaskState.CANCELED)
    elif kind == "finished":
        command, value = value, None
    if command is not None:
        return outcome_of_command(uid, Finished(*command[0]), command[1], started_at, ended_at, host or ran_on)
    return Outcome(
        uid,
        state,
        return_value=value,
        exception=exception,
        started_at=started_at,
        ended_at=ended_at,
        ran_on=host or ran_on,
    )


def outcome_of_command(
    uid: str, finished: Finished, paths: tuple[str | None, str | None], started: float, ended: float, ran_on: str | None
) -> Outcome:
    """Translate how an executable ended; `paths` are the files of its stdout and stderr."""
    state, exception = TaskState.DONE, None
    if finished.stopped:
        state = TaskState.CANCELED
    elif finished.exit_code != 0:
        state = TaskState.FAILED
        files = [path for path in paths if path]
        exception = TaskExecutionError(uid, finished.exit_code, finished.error_tail, files, finished.problem)
    return Outcome(
        uid,
        state,
        exception=exception,
        stdout=finished.stdout,
        stderr=finished.stderr,
        exit_code=finished.exit_code,
        stdout_path=paths[0],
        stderr_path=paths[1],
        started_at=started,
        ended_at=ended,
        ran_on=ran_on,
    )


def failure_of(uid: str, error: BaseException) -> BaseException:
    """Return the exception to hold for a function that raised `error` in this process.

    What asyncio or the interpreter would act on (SystemExit, CancelledError, StopIteration, ...) is wrapped.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    code = error.code if isinstance(error, SystemExit) else None
    wrapped = TaskExecutionError(
        uid,
        code if isinstance(code, int) else None,
        reason=f"the function raised {type(error).__name__}({', '.join(map(describe, error.args))})",
    )
    wrapped.__cause__ = error
    return wrapped


class RemoteTraceback(Exception):
    """Holds the text of a worker's traceback, as the cause of an exception that came from there."""

    def __str__(self) -> str:
        """Return the worker's traceback."""
        return f"\n{self.args[0]}"


def _exception_of(uid: str, raised: worker.Raised) -> BaseException:
    original = f"{raised.type_name}: {raised.message}"
    if raised.during == "arguments":
        text = f"task {uid}: its function or arguments could not be loaded on the worker: {original}"
        return SerializationError(text, raised.type_name, raised.trace)
    if raised.during == "result":
        text = f"task {uid}: its result cannot travel back from the worker: {original}"
        return SerializationError(text, raised.type_name, raised.trace)
    if raised.pickled is None:
        text = f"task {uid} raised {original}, which cannot be pickled"
        return SerializationError(text, raised.type_name, raised.trace)
    try:
        error = pickle.loads(raised.pickled)
    except BaseException as problem:
        text = f"task {uid} raised {original}, which cannot be loaded here ({type(problem).__name__}: {problem})"
        return SerializationError(text, raised.type_name, raised.trace)
    if not isinstance(error, BaseException):
        return SerializationError(f"task {uid} raised {original}, which is no exception here", raised.type_name)
    error = failure_of(uid, error)
    BaseException.__setattr__(error, "__cause__", RemoteTraceback(raised.trace))  # a frozen dataclass forbids its own
    return error


def _cannot_load(uid: str, what: str, error: BaseException) -> SerializationError:
    described = worker.describe_exception(error, what)
    return SerializationError(
        f"task {uid}: its {what} cannot be loaded here: {described.type_name}: {described.message}",
        described.type_name,
        described.trace,
    )
