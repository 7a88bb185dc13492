"""A backend object driven by a workflow engine instead of a session.

radical.asyncflow and engines like it hold a backend, describe tasks as dicts, and expect `callback(task, state)` on
the loop's thread, never from inside `submit_tasks`. This adapter gives them that over a private session, so that
every backend works under them with no code of its own.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import quote

from rhapsody.adapters.descriptions import options_of, translate, uid_of
from rhapsody.adapters.links import Folders
from rhapsody.errors import BackendError, RhapsodyError, SessionError, TaskExecutionError
from rhapsody.hookspecs import hookimpl
from rhapsody.log import get_logger
from rhapsody.model.kinds import FUNCTION
from rhapsody.model.outcome import CancelResult
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.model.transition import Transition
from rhapsody.scheduling.standby import Standby
from rhapsody.seam.backend import AttachableBackend
from rhapsody.sessions.session import Session

log = get_logger(__name__)
Refusal = tuple[dict[str, Any], Exception]

_RESULTS: Final = ("return_value", "stdout", "stderr", "exit_code", "exception")
_STOPPED: Final = (CancelResult.NEVER_STARTED, CancelResult.STOPPED, CancelResult.ABANDONED)


class TaskStatesMap:
    """The names of the states, as workflow engines read them."""

    DONE: ClassVar[str] = TaskState.DONE.value
    FAILED: ClassVar[str] = TaskState.FAILED.value
    CANCELED: ClassVar[str] = TaskState.CANCELED.value
    RUNNING: ClassVar[str] = TaskState.RUNNING.value
    terminal_states: ClassVar[frozenset[str]] = frozenset({DONE, FAILED, CANCELED})


class EngineState(str):
    """What the engine of a backend does, as text.

    IDLE: it was not started. INITIALIZED: it has started, and has no task. RUNNING: it has tasks, or a session has it.
    SHUTDOWN: it was shut down.
    """

    def __await__(self) -> Generator[Any, None, str]:
        """Return itself: some scripts await the state, others do not."""
        return self
        yield  # a generator that ends at once


class Standalone:
    """Runs dicts as tasks of one backend.

    A task runs under the uid that its engine gave it, which errors and files name. Uids repeat, between engines that
    share a backend and where a task is submitted again: then a number is added, since the late end of an earlier task,
    which was left to itself, is known by its name alone.
    """

    def __init__(self, backend: AttachableBackend) -> None:
        self.callback: Callable[[dict[str, Any], str], Any] | None = None
        self._backend = backend
        self._session: Session | None = None
        self._descriptions: dict[str, dict[str, Any]] = {}  # by the task's own uid
        self._tasks: dict[str, list[ComputeTask]] = {}  # by the engine's uid
        self._uses: dict[str, int] = {}  # by uid, how often it was given in this session
        self.links_files = False
        self._warned_of_shell = False
        self._was_started = False

    async def start(self) -> None:
        """Start the engine, unless a session has it already.

        Raises:
            BackendStartError: it did not start.
        """
        backend = self._backend
        if backend._session is None:
            self._was_started = True
            if backend._standby is None:
                backend._standby = Standby(backend)
            await backend._standby.started()

    def folders(self) -> Folders:
        """Return where the tasks run, of a backend that links files."""
        return Folders(self._backend._work_dir, self._backend.capabilities.remote)

    def state(self) -> EngineState:
        """Return what the engine does."""
        backend = self._backend
        if backend._session is not None:
            return EngineState("INITIALIZED" if self._is_own() and not self._descriptions else "RUNNING")
        if backend._standby is not None and backend._standby.is_up:
            return EngineState("INITIALIZED")
        return EngineState("SHUTDOWN" if self._was_started or backend.attached_to else "IDLE")

    def _is_own(self) -> bool:
        return self._session is not None and self._session.uid == self._backend._session

    def _refuse_in_session(self, cure: str) -> None:
        if self._backend._session is not None and not self._is_own():
            raise SessionError(f"backend {self._backend.name!r} is in session {self._backend._session}; {cure}")

    async def submit(self, descriptions: Sequence[dict[str, Any]]) -> None:
        """Run dicts. What happens to each is written into it and reported to the callback, a refusal too."""
        refused: list[Refusal] = []
        tasks: list[ComputeTask] = []
        if self._session is None or self._session.is_closed:  # a start may have failed, or a loop have ended
            self._session = self._open()
        for description in descriptions:
            try:
                task = translate(description, self._backend.name, self._name(uid_of(description, self._backend.name)))
                if self.links_files:
                    self.folders().place(description, task)
            except (RhapsodyError, OSError) as error:
                refused.append((description, error))
                continue
            if task.kind is FUNCTION and options_of(description).get("shell"):
                self._warn_of_shell()
            tasks.append(task)
            self._descriptions[task.uid] = description
            self._tasks.setdefault(str(description["uid"]), []).append(task)
        try:
            await self._accept(self._session, tasks, refused)
        finally:
            for task in tasks:
                if task.state is TaskState.NEW:  # refused, or the call was interrupted
                    self._forget(task)
            loop = asyncio.get_running_loop()
            for description, why in refused:  # reported once the engine's call has returned
                loop.call_soon(self._end, description, TaskState.FAILED, {"exception": why})

    def _name(self, uid: str) -> str:
        """Return a name for a task that no other has had: its uid, or with a number."""
        name, uses = uid, self._uses.get(uid, 0)
        while name in self._uses:
            uses += 1
            name = f"{uid}.{uses}"
        self._uses[uid], self._uses[name] = max(uses, 1), 1
        return name

    async def _accept(self, session: Session, tasks: Sequence[ComputeTask], refused: list[Refusal]) -> None:
        """Submit tasks together; where that is refused, each by itself, so that only what is at fault fails."""
        try:
            await session.submit_tasks(tasks)
        except RhapsodyError as error:
            if len(tasks) == 1 or isinstance(error, BackendError):  # the backend's trouble is that of all of them
                refused += [(self._descriptions[task.uid], error) for task in tasks]
                return
            for task in tasks:
                await self._accept(session, [task], refused)

    def _warn_of_shell(self) -> None:
        if not self._warned_of_shell:
            self._warned_of_shell = True
            text = f"backend {self._backend.name!r} ignores shell=True on functions, which no shell runs"
            warnings.warn(text, RuntimeWarning, stacklevel=5)

    async def cancel(self, uid: str) -> bool:
        """Stop the tasks that an engine knows by `uid`; a function that cannot be stopped is left to itself."""
        self._refuse_in_session("cancel the task with `await session.cancel_tasks([task])`")
        tasks = list(self._tasks.get(str(uid), ()))
        if not tasks or self._session is None:
            return False
        results = await self._session.cancel_tasks(tasks, abandon=True)
        return any(result in _STOPPED for result in results.values())

    async def shutdown(self) -> None:
        """Stop what runs, and the engine with it."""
        self._refuse_in_session("`await session.close()` shuts it down")
        session, standby = self._session, self._backend._standby
        if standby is not None:
            await standby.shutdown()
        if session is None:
            return
        try:
            await session.close(wait=False)
        finally:
            if self._session is session:
                self._session = None
        await asyncio.sleep(0)  # the last callbacks were scheduled: they come before this returns

    def _open(self) -> Session:
        folder = self._backend._work_dir
        session = Session(
            backends=[self._backend],
            uid=Path(folder).name if folder else None,
            work_dir=Path(folder).absolute().parent if folder else None,
        )
        session.observe(self)
        self._uses.clear()
        return session

    @hookimpl
    def rhapsody_tasks_changed(self, transitions: Sequence[Transition]) -> None:
        """Pass changes on, after whatever call of the engine's is under way has returned."""
        asyncio.get_running_loop().call_soon(self._notify, [(change.task, change.new) for change in transitions])

    def _notify(self, changes: list[tuple[ComputeTask, TaskState]]) -> None:
        for task, state in changes:
            description = self._descriptions.get(task.uid)
            if description is None or state is TaskState.QUEUED:
                continue
            if state is TaskState.RUNNING:
                self._call_back(description, state)
                continue
            self._forget(task)
            results = {field: task[field] for field in _RESULTS}
            if task.capture_stdio:
                results |= _captured(task, str(description["uid"]))
            self._end(description, state, results)

    def _end(self, description: dict[str, Any], state: TaskState, results: Mapping[str, Any]) -> None:
        """Write how a task ended into its dict, and call the engine back."""
        description.update({**dict.fromkeys(_RESULTS), **results, "state": state.value})
        if state is TaskState.FAILED and not description["stderr"]:
            description["stderr"] = str(description["exception"])  # engines search there first
        self._call_back(description, state)

    def _call_back(self, description: dict[str, Any], state: TaskState) -> None:
        if self.callback is None:
            return
        try:
            self.callback(description, state.value)
        except Exception as error:  # the engine's trouble; the other tasks must be reported all the same
            uid = description.get("uid")
            log.error("callback_failed", backend=self._backend.name, task=uid, exc_info=error)

    def _forget(self, task: ComputeTask) -> dict[str, Any]:
        description = self._descriptions.pop(task.uid)
        uid = str(description["uid"])
        self._tasks[uid].remove(task)
        if not self._tasks[uid]:
            del self._tasks[uid]
        return description


def _captured(task: ComputeTask, uid: str) -> dict[str, str | None]:
    """Name the files of captured output as engines expect it, UID.stdout and UID.stderr by their own uid; the paths."""
    paths = {}
    for stream, path in (("stdout", task.stdout_path), ("stderr", task.stderr_path)):
        named = path
        if path is not None:
            named = str(Path(path).with_name(f"{quote(uid, safe='')}.{stream}"))
            try:
                Path(path).replace(named)
            except OSError:  # it is on another machine, or was never written: it keeps its name
                named = path
        paths[stream] = named
    if isinstance(task.exception, TaskExecutionError):
        task.exception.paths = tuple(path for path in paths.values() if path)
    return paths
