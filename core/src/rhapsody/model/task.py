"""What a user describes, submits and reads results from: `ComputeTask`."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from contextvars import Context
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self, Unpack

import attrs

from rhapsody.errors import InvalidTaskError, SessionError, describe
from rhapsody.model.kinds import EXECUTABLE, FUNCTION, Kind
from rhapsody.model.mapping import AsMapping
from rhapsody.model.options import is_described, misspelled, shell_line, sort_fields
from rhapsody.model.policed import Policed
from rhapsody.model.policies import POLICY_FIELDS, Policies, PolicyFields, policies_of
from rhapsody.model.resources import Resources
from rhapsody.model.states import FINAL_STATES, TaskState

_numbers = itertools.count(1)


class _NoKeywords(dict[str, Any]):
    """The kwargs of every task that has none: one object, since the garbage collector's work grows with each."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("this task was made without kwargs; give them to ComputeTask(kwargs=...)")

    __setitem__ = __ior__ = setdefault = update = _refuse


_NO_KEYWORDS: Final = _NoKeywords()
_NEW: Final = TaskState.NEW


@attrs.define(init=False, eq=False, weakref_slot=True)
class ComputeTask(AsMapping, Policed):
    """One piece of work: a Python function, or an executable.

    Attributes:
        function: called as `function(*args, **kwargs)`; a coroutine function is awaited on a loop of the worker.
        args: positional arguments of the function. A task among them, also within lists, tuples, values of dicts and
            dataclasses, is replaced by what it returned (an executable's stdout) before this one starts.
        kwargs: keyword arguments of the function.
        executable: the program to run, a name on PATH or a path; with `shell=True` a command line for `/bin/sh`.
        arguments: the program's arguments; each is turned into text, and quoted where `shell=True`.
        stdin: what the program reads, or the Path of a file; text is encoded as UTF-8. None: nothing.
        cwd: the folder in which the task runs; a function's, where its worker is a process. None: the worker's own.
        environment: variables set for the task beside the worker's own; None as a value removes one. As with `cwd`, a
            function has them where its worker is a process.
        seed: of the random numbers that the function draws, a whole number or several: those of stream 0 of the seed,
            as `rhapsody.api.seeded` describes them. None: the worker's own numbers.
        shell: run `executable` and the quoted `arguments` through `/bin/sh -c`.
        capture_stdio: of an executable, write its streams to files of the session (`stdout_path`, `stderr_path`), not
            to memory (the first and last 8 MiB); of a function, keep what it prints in `stdout` and `stderr`.
        resources: what the task needs. None: one slot of the backend.
        backend: the name of the backend in the session. None: the session's first.
        backend_options: further options in the engine's own words; the backend refuses the ones it does not know.
        after: tasks that must be DONE before this one starts; so must those in `args`, `kwargs` and `arguments`. Empty
            once it may start.
        after_any: tasks that must have ended before this one starts, however they ended. Likewise.
        retries: how often the task is tried again after it failed, or a `Retry` that says when and how. None: never.
        crash_limit: a task whose worker died so often while it ran is not tried again, whatever `retries` says.
        timeout: seconds that each attempt may run; one that runs longer is stopped, and fails with TaskTimeoutError.
        deadline: seconds from the submit in which the task must have ended, whether it waits or runs; likewise, and it
            is not tried again. Where the backend cannot stop what runs, both are refused.
        priority: a whole number; tasks of a higher one leave the backlog first. So that nothing starves, every tenth
            task that leaves is the one that waits longest.
        tag: a name that several tasks may share, by which they can be canceled together.
        input_files: files that the task reads, as `output_files` it writes, kept for its caller; nothing moves them.
        metadata: what the caller keeps with the task.
        idempotent: running it twice does no harm: a resumed session runs it again if it was interrupted.
        cache: a later task of the same content has the result, in any session with the same work_dir.
        keep: a function's result stays where it ran, and goes from there to tasks that are given it; see `fetch`.
        uid: the task's name, unique in its session. Default: `task.000001`, counted in this process.
        state: where the task is in its life.
        return_value: what the function returned.
        stdout: what the program wrote, decoded as UTF-8 with undecodable bytes replaced; given as a Path, where to.
        stderr: likewise.
        exit_code: what the program returned; negative for the signal that ended it.
        exception: why the task failed or was canceled.
        submitted_at: seconds since the epoch, as are `started_at` and `ended_at`.
        ran_on: host and process that ran the task, where the engine reports it.
        native_id: what the engine calls the job that ran the task, and `logs` where its own log of it is, if anywhere.
        attempt: counts the times that the task was started, from 1.
        policies: what it asks of its scheduling; None where it asks for nothing.
        session: uid of the session that has accepted it.
        context: the context variables of whoever submitted it; a function in a thread runs in a copy of them.

    `task_backend_specific_kwargs`, a mapping, may hold fields and options of the backend mixed, as scripts for workflow
    engines give them. `env`, `ranks`, `cores_per_rank`, `gpus_per_rank` and `mem_per_rank` (MiB) may stand beside the
    fields. Any other name is kept in `metadata`, unless it is nearly that of a field.

    The description must not be changed once the task is submitted. `await task` waits for its end without ever
    canceling it, and returns the task, or raises what its future does: the function's own exception, TaskExecutionError
    for an executable, TaskCanceledError. A task reads as a mapping of its public fields, and before it is submitted
    `task["cwd"] = "/tmp"` changes one.

    Raises:
        InvalidTaskError: neither or both of `function` and `executable`, a field that the other kind of task has, or
            a field of the wrong type.
    """

    function: Callable[..., Any] | None
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    executable: str | Path | None
    arguments: Sequence[Any]
    stdin: str | bytes | Path | None
    cwd: str | Path | None
    environment: Mapping[str, str | None] | None
    seed: int | Sequence[int] | None
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
    native_id: str | None = attrs.field(repr=False)
    logs: str | None = attrs.field(repr=False)
    attempt: int = attrs.field(repr=False)
    policies: Policies | None = attrs.field(repr=False)
    session: str | None = attrs.field(repr=False)
    context: Context | None = attrs.field(repr=False)
    _named: bool = attrs.field(repr=False)  # whether the user chose the uid
    # Until it ends, the loop of its session, or its future once somebody asked for that, which has the loop too.
    _settler: asyncio.AbstractEventLoop | asyncio.Future[ComputeTask] | None = attrs.field(repr=False)
    _batch: Any = attrs.field(repr=False)  # the batch that holds it, while an engine does
    _traceback: TracebackType | None = attrs.field(repr=False)  # of `exception`, as it came: each raise adds to it

    # By hand, since this is a third of what a task costs: the one that attrs writes fetches every default, and takes
    # half as long again.
    def __init__(
        self,
        executable: str | Path | None = None,
        *,
        function: Callable[..., Any] | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        arguments: Sequence[Any] = (),
        stdin: str | bytes | Path | None = None,
        cwd: str | Path | None = None,
        environment: Mapping[str, str | None] | None = None,
        seed: int | Sequence[int] | None = None,
        shell: bool = False,
        capture_stdio: bool = False,
        resources: Resources | None = None,
        backend: str | None = None,
        backend_options: Mapping[str, Any] | None = None,
        uid: str | None = None,
        **policies: Unpack[PolicyFields],
    ) -> None:
        self.function = function
        self.args = args
        self.kwargs = _NO_KEYWORDS if kwargs is None else kwargs
        self.executable = executable
        self.arguments = arguments
        self.stdin = stdin
        self.cwd = cwd
        self.environment = environment
        self.seed = seed
        self.shell = shell
        self.capture_stdio = capture_stdio
        self.resources = resources
        self.backend = backend
        self.backend_options = backend_options
        self.uid = f"task.{next(_numbers):06d}" if uid is None else uid
        self.policies = None
        self._named = uid is not None
        self.state = _NEW
        self.return_value = self.exception = self.exit_code = None
        self.stdout = self.stderr = self.stdout_path = self.stderr_path = None
        self.submitted_at = self.started_at = self.ended_at = self.ran_on = self.native_id = self.logs = None
        self.attempt = 0
        self.session = self._settler = self._batch = self._traceback = self.context = None
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
            or seed is not None
            or shell is not False
            or capture_stdio is not False
            or resources is not None
            or backend_options is not None
            or uid is not None
        ):  # beside the common case
            self._check()
        if policies:
            self._take(policies)

    def _take(self, given: Mapping[str, Any]) -> None:
        """Take what few tasks are described by: see `sort_fields`, and `policies_of`."""
        policies, options, extra = dict(given), dict[str, Any](), dict[str, Any]()
        if not _POLICIES.issuperset(given):
            policies, options, extra = sort_fields(given, DESCRIPTION, self.uid)
        for name, value in options.items():
            setattr(self, name, value)
        if options:
            if options.get("shell") and self.function is None:  # as options come, operators are among the words
                self.executable, self.arguments = shell_line(str(self.executable), self.arguments), ()
            self._check()
        if extra or "metadata" in policies:
            policies["metadata"] = {**policies.get("metadata", {}), **extra}
        self.policies = policies_of(self.uid, policies, self.function is not None)
        for parent in (*self.after, *self.after_any):
            if not isinstance(parent, ComputeTask):
                raise InvalidTaskError(f"task {self.uid} waits for {describe(parent)}, which is no task")

    def _check(self) -> None:
        """Refuse a description that is invalid, where it is written."""
        self.kind.check(self)
        self.args = tuple(self.args)

    @property
    def kind(self) -> Kind:
        """FUNCTION or EXECUTABLE, of `rhapsody.plugin`."""  # derived: it costs no task a field
        return EXECUTABLE if self.function is None else FUNCTION

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Self:
        """Build a task from a mapping of the same fields.

        Args:
            description: fields; results among them, as `dict(task)` has them, are left out.

        Raises:
            InvalidTaskError: the name of a field, misspelled.
        """
        fields = {key: value for key, value in description.items() if is_described(cls, DESCRIPTION, key, value)}
        unknown = misspelled(fields, DESCRIPTION)
        if unknown:
            uid = description.get("uid", "(no uid)")
            raise InvalidTaskError(
                f"task {describe(uid)} has unknown fields {', '.join(map(repr, unknown))}; "
                f"a task has {', '.join(DESCRIPTION)}"
            )
        return cls(**fields)

    def validate(self) -> None:
        """Check the description again, after its fields were changed.

        Raises:
            InvalidTaskError: it makes no sense.
        """
        self._check()

    def _names(self) -> tuple[Sequence[str], Sequence[str]]:
        return _PLAIN, _OTHERS

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
        """Return all but the traceback and the context, which cannot leave the process."""
        state = {field.name: getattr(self, field.name) for field in attrs.fields(type(self))}
        return state | {"_traceback": None, "context": None}

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
        end = self._settler
        assert end is not None
        if isinstance(end, asyncio.AbstractEventLoop):
            end = self._settler = end.create_future()
        elif end.cancelled():  # whoever had canceled it has given up for himself alone
            end = self._settler = end.get_loop().create_future()
        return end

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


#: The names of the fields that describe a task.
DESCRIPTION: Final = (
    *(name for name in inspect.signature(ComputeTask).parameters if name != "policies"),
    *POLICY_FIELDS,
)
_POLICIES: Final = frozenset(POLICY_FIELDS)
_PLAIN: Final = tuple(name for name in DESCRIPTION if name not in POLICY_FIELDS)
_RESULTS: Final = (field.name for field in attrs.fields(ComputeTask) if field.name not in (*_PLAIN, "policies"))
_OTHERS: Final = (
    *(name for name in POLICY_FIELDS if name != "metadata"),
    *(name for name in _RESULTS if not name.startswith("_")),
)
