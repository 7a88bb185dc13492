"""`Session`: what a user holds. It owns tasks, futures and observers, and never touches an engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from rhapsody.errors import DuplicateBackendError, SessionError
from rhapsody.log import configure, get_logger
from rhapsody.model.outcome import CancelResult
from rhapsody.model.shared import Shared
from rhapsody.model.states import FINAL_STATES, TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.scheduling.runner import BackendRunner
from rhapsody.seam.backend import AttachableBackend
from rhapsody.sessions.dispatch import Dispatcher
from rhapsody.sessions.futures import TaskFutures
from rhapsody.sessions.given import Backends, Named, instances, named, several, submitted
from rhapsody.sessions.lifecycle import Lifecycle, Phase
from rhapsody.sessions.observed import Observable, Observers
from rhapsody.sessions.recorder import Recorder
from rhapsody.sessions.streams import Streams
from rhapsody.sessions.submission import Submission

log = get_logger(__name__)
T = TypeVar("T")


class Session(Observable, Streams):
    """Runs tasks on named backends, and keeps the promise: each accepted task reaches exactly one final state.

    Use it as `async with Session(...) as session`, or call `close` yourself. Leaving the block cleanly waits for what
    was submitted; leaving it by an exception cancels it. A session belongs to one event loop.

    Args:
        backends: instances (awaited or not), names, or a mapping of the name to use in this session to either. None:
            the backend named in RHAPSODY_BACKEND, else `concurrent`. The first is the one for tasks that name none.
        uid: the session's name, and that of its folder. Default: unique on this machine.
        work_dir: where that folder is made, once there is a file to write. None: RHAPSODY_WORK_DIR, else the current
            directory.
        journal: write what happens into `journal.db` in that folder; `"required"` refuses tasks that cannot be written.
            None: RHAPSODY_JOURNAL, else False.

    Raises:
        BackendNotFoundError, BackendNotInstalledError, BackendLoadError: a name that cannot be had.
        InvalidBackendError: an instance that is no backend, or is attached to an open session.
        DuplicateBackendError: two backends of one name.
        SettingsError: an environment variable holds something unusable.
    """

    def __init__(
        self,
        backends: Backends | None = None,
        uid: str | None = None,
        work_dir: str | Path | None = None,
        journal: bool | str | None = None,
    ) -> None:
        configure()
        self.uid, self.work_dir = named(uid, work_dir)
        self._runners: dict[str, BackendRunner] = {}
        self._observers = Observers(self)
        self._recorder = Recorder(self.uid, self._observers)
        self._dispatcher = Dispatcher(self.uid, self._runners, self._recorder)
        clear = self._dispatcher.close
        self._life = Lifecycle(self.uid, self._runners, self._recorder, self._observers, self.cancel_tasks, clear)
        self._submission = Submission(
            self.uid, self._runners, self._life, self._recorder, self._observers, self._dispatcher
        )
        for backend in instances(backends):
            self._add(backend)
        self._observers.add_journal(journal)

    def _add(self, backend: AttachableBackend) -> None:
        if backend.name in self._runners:
            raise DuplicateBackendError(
                f"two backends are named {backend.name!r}; give one of them another name "
                f"({type(backend).__name__}(name=...), or a mapping of names to backends)"
            )
        self._runners[backend.name] = BackendRunner(
            backend,
            session=self.uid,
            work_dir=self.work_dir,
            sink=self._dispatcher.record,
            retries=self._dispatcher.try_again,
            ends_of=self._recorder.ends.wait,
            on_batch=self._observers.batch_submitted,
            on_abandoned=self._life.abandoned,
        )

    @classmethod
    def resume(cls, path: str | Path, backends: Backends | None = None, *, rerun: bool = False) -> Self:
        """Return a session that goes on where one with a journal was: what was done there is not run again.

        Tasks are known by their content: the code and the arguments of a function, the command line of an executable.
        One that was done has its result at once. One that ran when the session was killed fails with
        TaskInterruptedError, unless it is marked `idempotent`.

        Args:
            path: the folder of the session.
            backends: as for a new session.
            rerun: run again what was interrupted.
        """
        folder = Path(path).expanduser().absolute()
        return cls(backends, uid=folder.name, work_dir=folder.parent, journal="rerun" if rerun else "resume")

    def __repr__(self) -> str:
        """Name the session, its backends and what it still has to do."""
        return f"<Session {self.uid} on {', '.join(self._runners)}: {len(self._recorder.tasks)} tasks not ended>"

    @property
    def backends(self) -> tuple[str, ...]:
        """The names of the backends, the default one first."""
        return tuple(self._runners)

    @property
    def is_closed(self) -> bool:
        """Whether the session has ended: by `close`, with its loop, or since its backends did not start."""
        return self._life.phase is Phase.CLOSED

    @property
    def sandbox(self) -> Path:
        """The session's folder; it is there once a file was written to it."""
        return self.work_dir / self.uid

    # -- opening and closing -----------------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Start the backends; `async with` and the first submit do this by themselves.

        Raises:
            BackendStartError: one of them did not start; the others were shut down, and the session is closed.
        """
        await self._life.start()
        return self

    async def __aenter__(self) -> Self:
        """Start the backends."""
        self._life.in_block = True
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what was submitted, or cancel it where an exception ends the block; then close."""
        try:
            await self.close(wait=error is None)
        except Exception as problem:
            if error is None:
                raise
            log.error(
                "close_failed", session=self.uid, error=str(problem)
            )  # the exception that ends the block matters more

    async def close(self, *, wait: bool = True) -> None:
        """End the session. Every future is resolved, and every backend shut down, when this returns.

        May be called again, and by several at once: all of them wait for the one end. Interrupting the wait cancels
        what is left, and closes.

        Args:
            wait: for the tasks that were submitted; otherwise they are canceled. A function that cannot be stopped
                (it runs in a thread) and does not end within two seconds is FAILED with SessionClosedError.

        Raises:
            BackendShutdownError: a backend did not shut down cleanly; the others did, or are in the exception's notes.
        """
        await self._life.close(wait)

    # -- tasks -------------------------------------------------------------------------------------------------------

    async def submit_tasks(
        self,
        tasks: Iterable[ComputeTask | Mapping[str, Any]] | AsyncIterable[ComputeTask | Mapping[str, Any]],
    ) -> TaskFutures:
        """Accept tasks: all of them, or none; those of a long generator as there is room.

        Of a generator, or another iterable without a length, at most 10,000 tasks have not ended at any time: more are
        taken as they end, this returns when the last is accepted, and memory stays bounded. The first 10,000 are
        accepted together or not at all; where a later one is refused, those before it were accepted, as a note of the
        error says. An asynchronous generator's are accepted one by one, so that it may await what it has yielded.

        Args:
            tasks: tasks, or mappings of a task's fields. Each task can be submitted once. A dict stands for its task
                in `wait_tasks` and `cancel_tasks`, and has `uid`, `state` and the results in it at the end.

        Returns:
            A sequence with a future for each task, in the same order; each is made when it is asked for. It resolves
            to the task; or raises the function's own exception, TaskExecutionError for an executable,
            TaskCanceledError. Canceling a future gives up the wait and leaves the task alone. Where a generator yields
            more than 10,000 tasks, those that end before it does are let go of, and to ask for their future raises
            SessionError; `as_completed` yields them all.

        Raises:
            InvalidTaskError, DuplicateTaskError, UnsupportedError, BackendNotFoundError: of the first bad task.
            SessionClosedError: the session is closed.
            BackendStartError: the session was not started yet, and could not be.
            BackendLostError: the engine of a task's backend is gone.
        """
        return await self._submission.submit(tasks)

    @overload
    async def wait_tasks(self, tasks: None = None, timeout: float | None = None) -> list[ComputeTask]: ...

    @overload
    async def wait_tasks(self, tasks: Iterable[Named], timeout: float | None = None) -> list[Named]: ...

    async def wait_tasks(self, tasks: Iterable[Any] | None = None, timeout: float | None = None) -> list[Any]:
        """Wait for the end of tasks.

        Never raises for a task that failed, and never cancels one: neither at the timeout, nor if the wait itself is
        canceled.

        Args:
            tasks: the tasks; None for all that the session has accepted and that have not ended.
            timeout: seconds.

        Returns:
            The same tasks, in the same order.

        Raises:
            TimeoutError: some of them have not ended in time.
            SessionError: a task that was not submitted to this session.
            InvalidTaskError: no list, or something in it that is no task.
        """
        named = list(self._recorder.tasks.values() if tasks is None else several(tasks, "wait_tasks"))
        waited = submitted(self._recorder.dicts.tasks(named, self.uid), "wait_tasks")
        for task in waited:
            if task.state is TaskState.NEW:
                raise SessionError(f"task {task.uid} was not submitted; there is nothing to wait for")
            if task.state not in FINAL_STATES and self._recorder.tasks.get(task.uid) is not task:
                raise SessionError(f"task {task.uid} is not a task of session {self.uid}")
        pending = {task.uid for task in waited if task.state not in FINAL_STATES}
        try:
            async with asyncio.timeout(timeout):
                await self._recorder.ends.wait(pending)
        except TimeoutError:
            left = sum(not task.is_final for task in waited)
            raise TimeoutError(f"{left} of {len(waited)} tasks have not ended within {timeout:g} seconds") from None
        return named

    def share(self, value: T) -> Shared[T]:
        """Return a handle for a value of many tasks, which travels once to each worker, and is loaded once there.

        Give the handle in place of the value, among the arguments or in lists, tuples, dicts and dataclasses there: the
        function receives the value. It is for reading: arrays of it cannot be written to on a worker.

        Args:
            value: any that can be pickled. It must not be changed while tasks have it.
        """
        return Shared(value)

    async def cancel_tasks(
        self,
        tasks: Iterable[ComputeTask | dict[str, Any]] | None = None,
        *,
        group: str | None = None,
        dependents: bool = False,
        abandon: bool = False,
    ) -> dict[str, CancelResult]:
        """Stop tasks, and say of each what became of it.

        A task that still waits never runs; a running executable's process group gets SIGTERM, and SIGKILL three
        seconds later; whether a running function can be stopped is the backend's to say.

        Args:
            tasks: of this session.
            group: instead of tasks: all that have this `tag` and have not ended.
            dependents: also what waits for them, and so on; otherwise those tasks are FAILED with DependencyError.
            abandon: end as CANCELED what cannot be stopped. It runs on, keeps its worker busy, and its end is dropped.

        Returns:
            By uid: NEVER_STARTED, STOPPED, TOO_LATE (it had ended), CANNOT_STOP (it keeps its real end), or with
            `abandon` ABANDONED instead.

        Raises:
            SessionError: a task that was not submitted to this session; both tasks and a group.
            InvalidTaskError: no list, or something in it that is no task.
        """
        if group is not None:
            if tasks is not None:
                raise SessionError("cancel_tasks takes either tasks or a group, not both")
            named = [task for task in self._recorder.tasks.values() if task.tag == group]
        else:
            named = submitted(self._recorder.dicts.tasks(several(tasks, "cancel_tasks"), self.uid), "cancel_tasks")
        return await self._dispatcher.cancel(named, dependents=dependents, abandon=abandon)

    def explain(self, task: ComputeTask) -> str:
        """Return a sentence that says what a task waits for, where it runs, or how it ended.

        Raises:
            SessionError: a task of another session.
        """
        return self._dispatcher.explain(task)
