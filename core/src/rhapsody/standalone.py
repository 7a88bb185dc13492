"""A backend object driven by a workflow engine instead of a session.

radical.asyncflow and engines like it hold a backend, describe tasks as dicts, and expect `callback(task, state)` on
the loop's thread, never from inside `submit_tasks`. This adapter gives them that over a private session, so that
every backend works under them with no code of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ._marker import hookimpl
from .errors import InvalidTaskError
from .events import CancelResult
from .log import get_logger
from .states import TaskState
from .task import ComputeTask

if TYPE_CHECKING:
    from .backends.base import ExecutionBackend
    from .session import Session, Transition

log = get_logger(__name__)

# What an engine may put beside the fields of a task in `task_backend_specific_kwargs`: fields of ours by name.
_OPTION_FIELDS: Final = ("cwd", "environment", "shell", "stdin", "resources")
_RESULTS: Final = ("return_value", "stdout", "stderr", "exit_code", "exception")


class TaskStatesMap:
    """The names of the states, as workflow engines look them up."""

    DONE: ClassVar[str] = TaskState.DONE.value
    FAILED: ClassVar[str] = TaskState.FAILED.value
    CANCELED: ClassVar[str] = TaskState.CANCELED.value
    RUNNING: ClassVar[str] = TaskState.RUNNING.value
    terminal_states: ClassVar[frozenset[str]] = frozenset({DONE, FAILED, CANCELED})


class Standalone:
    """Runs dicts as tasks of one backend.

    Uids repeat between engines that share a backend, so tasks run under names of their own, and a dict is found by
    the name that was given to it.
    """

    def __init__(self, backend: ExecutionBackend) -> None:
        self.callback: Callable[[dict[str, Any], str], Any] | None = None
        self._backend = backend
        self._session: Session | None = None
        self._descriptions: dict[str, dict[str, Any]] = {}  # by the task's own uid
        self._tasks: dict[str, list[ComputeTask]] = {}  # by the engine's uid

    async def submit(self, descriptions: Sequence[dict[str, Any]]) -> None:
        """Run dicts; what happens to them is written into them and told to the callback."""
        tasks = [self._translate(description) for description in descriptions]
        if self._session is None or self._session.is_closed:  # a start may have failed, or a loop have ended
            self._session = self._open()
        for task, description in zip(tasks, descriptions, strict=True):
            self._descriptions[task.uid] = description
            self._tasks.setdefault(description["uid"], []).append(task)
        try:
            await self._session.submit_tasks(tasks)
        except BaseException:
            for task, description in zip(tasks, descriptions, strict=True):
                if task.state is TaskState.NEW:
                    self._forget(task, description)
            raise

    async def cancel(self, uid: str) -> bool:
        """Stop the tasks that an engine knows by `uid`."""
        tasks = list(self._tasks.get(uid, ()))
        if not tasks or self._session is None:
            return False
        results = await self._session.cancel_tasks(tasks)
        return any(result in (CancelResult.NEVER_STARTED, CancelResult.STOPPED) for result in results.values())

    async def shutdown(self) -> None:
        """Stop what runs, and the backend with it."""
        session = self._session
        if session is None:
            return
        try:
            await session.close(wait=False)
        finally:
            if self._session is session:
                self._session = None
        await asyncio.sleep(0)  # the last callbacks were scheduled: they come before this returns

    def _open(self) -> Session:
        from .session import Session

        folder = self._backend._work_dir
        session = Session(
            backends=[self._backend],
            uid=Path(folder).name if folder else None,
            work_dir=Path(folder).absolute().parent if folder else None,
        )
        session.observe(self)
        return session

    @hookimpl
    def rhapsody_tasks_changed(self, transitions: Sequence[Transition]) -> None:
        """Pass changes on, after whatever call of the engine's is under way has returned."""
        asyncio.get_running_loop().call_soon(self._tell, [(task, new) for task, _, new in transitions])

    def _tell(self, changes: list[tuple[ComputeTask, TaskState]]) -> None:
        for task, state in changes:
            description = self._descriptions.get(task.uid)
            if description is None or state is TaskState.QUEUED:
                continue
            if state is not TaskState.RUNNING:
                self._forget(task, description)
                for field in _RESULTS:
                    description[field] = task[field]
                if task.capture_stdio:
                    description["stdout"], description["stderr"] = task.stdout_path, task.stderr_path
                description["state"] = state.value
            if self.callback is not None:
                try:
                    self.callback(description, state.value)
                except Exception as error:  # the engine's trouble; the other tasks must be told all the same
                    log.error("callback_failed", backend=self._backend.name, task=description["uid"], exc_info=error)

    def _forget(self, task: ComputeTask, description: Mapping[str, Any]) -> None:
        self._descriptions.pop(task.uid, None)
        tasks = self._tasks.get(description["uid"], [])
        if task in tasks:
            tasks.remove(task)
        if not tasks:
            self._tasks.pop(description["uid"], None)

    def _translate(self, description: Mapping[str, Any]) -> ComputeTask:
        if "uid" not in description:
            raise InvalidTaskError(f"a task for backend {self._backend.name!r} has no uid")
        options = dict(description.get("task_backend_specific_kwargs") or {})
        fields = {name: options.pop(name) for name in _OPTION_FIELDS if name in options}
        if description.get("executable"):
            fields["executable"] = description["executable"]
            fields["arguments"] = list(description.get("arguments") or ())
            fields["capture_stdio"] = bool(description.get("capture_stdio"))  # engines give it to functions too
        else:
            fields["function"] = description.get("function")
            fields["args"] = tuple(description.get("args") or ())
            fields["kwargs"] = dict(description.get("kwargs") or {})
        return ComputeTask(**fields, backend_options=options or None)
