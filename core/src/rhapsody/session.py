"""`Session`: what a user holds. It owns tasks, futures and observers, and never touches an engine."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from enum import Enum, auto
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from . import settings
from .admission import Backends, Routes, instances, route, several, submitted
from .backends.base import ExecutionBackend
from .discovery import load_observers
from .errors import (
    DuplicateBackendError,
    DuplicateTaskError,
    InvalidBackendError,
    SessionClosedError,
    SessionError,
    describe,
)
from .events import CancelResult, Outcome
from .flow import Change
from .futures import TaskFutures
from .hooks import ObserverCaller
from .log import configure, get_logger
from .records import apply, unended
from .runner import BackendRunner, at_exit, warn_unclosed
from .states import FINAL_STATES, TaskState
from .streaming import IN_FLIGHT, Ends, in_order_of_completion, map_in_order
from .task import ComputeTask

log = get_logger(__name__)

Transition = tuple[ComputeTask, TaskState, TaskState]
_numbers = itertools.count(1)
_GRACE: Final = 2.0  # seconds that tasks which cannot be stopped have to end by themselves when a session is canceled
_LAST_REPORTS: Final = 0.1  # seconds, at least, in which the ends of tasks that were stopped are reported


class _Phase(Enum):
    NEW = auto()
    OPEN = auto()
    CLOSING = auto()
    CLOSED = auto()


class Session:
    """Runs tasks on named backends, and keeps the promise: each accepted task reaches exactly one final state.

    Use it as `async with Session(...) as session`, or call `close` yourself. Leaving the block cleanly waits for what
    was submitted; leaving it by an exception cancels it. A session belongs to one event loop.

    Args:
        backends: instances (awaited or not), names, or a mapping of the name to use in this session to either. None:
            the backend named in RHAPSODY_BACKEND, else `concurrent`. The first is the one for tasks that name none.
        uid: the session's name, and that of its folder. Default: unique on this machine.
        work_dir: where that folder is made, once there is a file to write. None: RHAPSODY_WORK_DIR, else the current
            directory.

    Raises:
        BackendNotFoundError, BackendNotInstalledError, BackendLoadError: a name that cannot be had.
        InvalidBackendError: an instance that is no backend, or is attached to an open session.
        DuplicateBackendError: two backends of one name.
        SettingsError: an environment variable holds something unusable.
    """

    def __init__(
        self, backends: Backends | None = None, uid: str | None = None, work_dir: str | Path | None = None
    ) -> None:
        configure()
        if uid is not None and (not isinstance(uid, str) or not uid or "/" in uid or uid in (".", "..")):
            raise SessionError(f"the uid of a session names a folder; {describe(uid)} cannot")
        self.uid = uid or f"rhapsody.{time.strftime('%Y%m%d-%H%M%S')}.{os.getpid()}.{next(_numbers)}"
        self.work_dir = Path(work_dir).expanduser().absolute() if work_dir is not None else settings.work_dir()
        self._phase = _Phase.NEW
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: dict[str, ComputeTask] = {}  # accepted and not ended
        self._names: set[str] = set()  # uids that users chose, of all tasks ever: a file may carry such a name
        self._ends = Ends()
        self._observers = list(load_observers())
        self._observer_hooks = ObserverCaller(self._observers)
        self._starting: asyncio.Task[None] | None = None
        self._starters = 0  # callers that wait for the start
        self._closing: asyncio.Task[None] | None = None
        self._hurry: asyncio.Event | None = None  # set: stop waiting for tasks, cancel them
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._in_block = False  # of `async with`: then nobody has forgotten to close it
        self._runners: dict[str, BackendRunner] = {}
        for backend in instances(backends):
            self._add(backend)

    def _add(self, backend: ExecutionBackend) -> None:
        if backend.name in self._runners:
            raise DuplicateBackendError(
                f"two backends are named {backend.name!r}; give one of them another name "
                f"({type(backend).__name__}(name=...), or a mapping of names to backends)"
            )
        self._runners[backend.name] = BackendRunner(
            backend, session=self.uid, work_dir=self.work_dir, sink=self._changed, on_abandoned=self._abandoned
        )

    def __repr__(self) -> str:
        """Name the session, its backends and what it still has to do."""
        return f"<Session {self.uid} on {', '.join(self._runners)}: {len(self._tasks)} tasks not ended>"

    @property
    def backends(self) -> tuple[str, ...]:
        """The names of the backends, the default one first."""
        return tuple(self._runners)

    @property
    def is_closed(self) -> bool:
        """Whether the session has ended: by `close`, with its loop, or since its backends did not start."""
        return self._phase is _Phase.CLOSED

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
        if self._phase is _Phase.OPEN:
            return self
        self._bind()
        self._refuse_if_closed()
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(), name=f"rhapsody start {self.uid}")
            self._starting.add_done_callback(_seen)
        self._starters += 1
        try:
            await asyncio.shield(self._starting)
        except asyncio.CancelledError:
            if self._starters == 1:  # nobody else waits for this start
                self._starting.cancel()
                await asyncio.wait([self._starting])
            raise
        finally:
            self._starters -= 1
        self._refuse_if_closed()
        return self

    async def _start(self) -> None:
        starts = [asyncio.ensure_future(runner.start()) for runner in self._runners.values()]
        problems: list[BaseException] = []
        try:
            await asyncio.wait(starts, return_when=asyncio.FIRST_EXCEPTION)
        except asyncio.CancelledError as interrupted:
            problems.append(interrupted)
        for start in starts:
            if start.cancelled():
                problems.append(SessionClosedError(f"session {self.uid} was closed while it started"))
            elif start.done() and (problem := start.exception()) is not None:
                problems.append(problem)
        if problems:
            await self._shut_down_backends(wait=False)
            await asyncio.gather(*starts, return_exceptions=True)  # seen: the first of them is raised
            self._phase = _Phase.CLOSED
            raise _with_notes(problems)
        self._phase = _Phase.OPEN
        runners = list(self._runners.values())
        self._finalizer = weakref.finalize(self, at_exit, self.uid, os.getpid(), runners, not self._in_block)
        self._observer_hooks.opened(self)

    async def __aenter__(self) -> Self:
        """Start the backends."""
        self._in_block = True
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
        if self._phase is _Phase.CLOSED:
            return
        self._bind()
        if self._closing is None:
            self._hurry = asyncio.Event()
            self._closing = asyncio.create_task(self._close(), name=f"rhapsody close {self.uid}")
            self._closing.add_done_callback(_seen)
        assert self._hurry is not None
        if not wait:
            self._hurry.set()
        try:
            await asyncio.shield(self._closing)
        except asyncio.CancelledError:
            self._hurry.set()
            await asyncio.wait([self._closing])
            raise

    async def _close(self) -> None:
        assert self._hurry is not None
        self._phase = _Phase.CLOSING if self._phase is _Phase.OPEN else self._phase
        if self._phase is _Phase.CLOSING:
            await self._end_tasks(self._hurry)
        problems = await self._shut_down_backends(wait=not self._hurry.is_set())
        self._changed(
            [(task, unended(task, self.uid)) for task in list(self._tasks.values())]
        )  # of a backend that was never started, or that lost track
        self._phase = _Phase.CLOSED
        if self._finalizer is not None:
            self._finalizer.detach()
        self._observer_hooks.closed(self)
        if problems:
            raise _with_notes(problems)

    async def _end_tasks(self, hurry: asyncio.Event) -> None:
        """Wait for the tasks; once there is a hurry, cancel them, and give those that cannot be stopped a moment."""
        drained = asyncio.ensure_future(self._ends.wait(self._tasks))
        hurried = asyncio.ensure_future(hurry.wait())
        try:
            await asyncio.wait([drained, hurried], return_when=asyncio.FIRST_COMPLETED)
            if not drained.done():
                until = time.monotonic() + _GRACE
                await self.cancel_tasks(list(self._tasks.values()))
                await asyncio.wait([drained], timeout=max(_LAST_REPORTS, until - time.monotonic()))
            if not drained.done():
                self._changed([(task, unended(task, self.uid)) for task in list(self._tasks.values())])
        finally:
            drained.cancel()
            hurried.cancel()

    async def _shut_down_backends(self, wait: bool) -> list[BaseException]:
        ends = await asyncio.gather(
            *(runner.shutdown(wait) for runner in self._runners.values()), return_exceptions=True
        )
        for runner in self._runners.values():
            runner.backend.detach(self.uid)
        return [problem for problem in ends if isinstance(problem, BaseException)]

    def _abandoned(self) -> None:
        """The loop is being torn down around an open session: it is closed by its runners, and says so."""
        if self._phase in (_Phase.OPEN, _Phase.CLOSING):
            was_open = self._phase is _Phase.OPEN
            self._phase = _Phase.CLOSED
            for runner in self._runners.values():
                runner.backend.detach(self.uid)
            if self._finalizer is not None:
                self._finalizer.detach()
            if was_open and self._closing is None and not self._in_block:
                warn_unclosed(self.uid)

    def _bind(self) -> None:
        """Hold on to the loop that the session belongs to, and to its backends."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            attached: list[ExecutionBackend] = []
            try:
                for runner in self._runners.values():
                    runner.backend.attach(self.uid)
                    attached.append(runner.backend)
            except InvalidBackendError:
                for backend in attached:  # and no other: it may belong to another session, even to one of this uid
                    backend.detach(self.uid)
                raise
            self._loop = loop
        elif self._loop is not loop:
            raise SessionError(f"session {self.uid} belongs to another event loop; make a session in each loop")

    def _refuse_if_closed(self) -> None:
        if self._phase in (_Phase.CLOSING, _Phase.CLOSED) or self._closing is not None:
            raise SessionClosedError(f"session {self.uid} is closed; make a new one")

    # -- tasks -------------------------------------------------------------------------------------------------------

    async def submit_tasks(self, tasks: Iterable[ComputeTask | Mapping[str, Any]]) -> TaskFutures:
        """Accept tasks: all of them, or none.

        Args:
            tasks: tasks, or mappings of a task's fields. Each object can be submitted once.

        Returns:
            A sequence with a future for each task, in the same order; each is made when it is asked for. It resolves
            to the task; or raises the function's own exception, TaskExecutionError for an executable,
            TaskCanceledError. Canceling a future gives up the wait and leaves the task alone.

        Raises:
            InvalidTaskError, DuplicateTaskError, UnsupportedError, BackendNotFoundError: of the first bad task.
            SessionClosedError: the session is closed.
            BackendStartError: the session was not started yet, and could not be.
            BackendLostError: the engine of a task's backend is gone.
        """
        self._refuse_if_closed()
        routes = route(tasks, self._runners, session=self.uid, live=self._tasks, names=self._names)
        if self._phase is not _Phase.OPEN:
            await self.start()
            self._refuse_if_closed()
            self._refuse_duplicates(routes)
        elif asyncio.get_running_loop() is not self._loop:
            self._bind()
        return self._accept(routes)

    def _refuse_duplicates(self, routes: Routes) -> None:
        """Check again what may have changed while the session started."""
        for task in routes.tasks:
            if task.state is not TaskState.NEW or task.uid in self._tasks or task.uid in self._names:
                raise DuplicateTaskError(f"session {self.uid} already has a task {task.uid!r}")

    def _accept(self, routes: Routes) -> TaskFutures:
        loop, now = self._loop, time.time()
        assert loop is not None
        accepted, queued = self._tasks, TaskState.QUEUED
        for task in routes.tasks:
            task._loop = loop
            task.state = queued  # from NEW, as `route` has checked
            task.submitted_at = now
            accepted[task.uid] = task
            if task._named:
                self._names.add(task.uid)
        if self._observer_hooks.wants_transitions and routes.tasks:
            self._observer_hooks.tasks_changed(self, [(task, TaskState.NEW, queued) for task in routes.tasks])
        for runner, group in routes.groups.items():
            runner.enqueue(group)
        return TaskFutures(routes.tasks, loop)

    async def wait_tasks(
        self, tasks: Iterable[ComputeTask] | None = None, timeout: float | None = None
    ) -> list[ComputeTask]:
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
        waited = list(self._tasks.values()) if tasks is None else submitted(tasks, "wait_tasks")
        for task in waited:
            if task.state is TaskState.NEW:
                raise SessionError(f"task {task.uid} was not submitted; there is nothing to wait for")
            if task.state not in FINAL_STATES and self._tasks.get(task.uid) is not task:
                raise SessionError(f"task {task.uid} is not a task of session {self.uid}")
        pending = {task.uid for task in waited if task.state not in FINAL_STATES}
        try:
            async with asyncio.timeout(timeout):
                await self._ends.wait(pending)
        except TimeoutError:
            left = sum(not task.is_final for task in waited)
            raise TimeoutError(f"{left} of {len(waited)} tasks have not ended within {timeout:g} seconds") from None
        return waited

    def map(
        self,
        function: Callable[..., Any],
        *iterables: Iterable[Any],
        backend: str | None = None,
        in_flight: int = IN_FLIGHT,
    ) -> AsyncGenerator[Any, None]:
        """Call a function with the items of iterables, as `map` does, and yield what the calls return, in order.

        Items are taken as there is room, so the iterables may be endless, and memory stays bounded. A call that fails
        raises its exception in its turn. Leaving the iteration early cancels the calls that are left.

        Args:
            function: what to call.
            iterables: its arguments; the shortest ends the iteration.
            backend: where; None for the session's first.
            in_flight: calls that are submitted, or have ended and wait for their turn.

        Raises:
            SessionError: in_flight is no positive whole number.
        """
        return map_in_order(self, function, iterables, backend, in_flight)

    def as_completed(
        self, tasks: Iterable[ComputeTask | Mapping[str, Any]], *, in_flight: int = IN_FLIGHT
    ) -> AsyncGenerator[ComputeTask, None]:
        """Yield tasks as they end, however they end; ask `task.state`, or `task.result()`, which raises.

        Tasks that were not submitted are submitted as there is room, so an endless generator of new tasks runs in
        bounded memory. Leaving the iteration early leaves those that were submitted alone.

        Args:
            tasks: new tasks, mappings of their fields, or tasks of this session.
            in_flight: tasks that have not ended, or have ended and were not yielded.

        Raises:
            SessionError: in_flight is no positive whole number; a task of another session.
            InvalidTaskError and others: as `submit_tasks` does.
        """
        return in_order_of_completion(self, self._tasks, self._ends, several(tasks, "as_completed"), in_flight)

    async def cancel_tasks(self, tasks: Iterable[ComputeTask]) -> dict[str, CancelResult]:
        """Stop tasks, and say of each what became of it.

        A task that still waits never runs; a running executable's process group gets SIGTERM, and SIGKILL three
        seconds later; whether a running function can be stopped is the backend's to say.

        Returns:
            By uid: NEVER_STARTED, STOPPED, TOO_LATE (it had ended), or CANNOT_STOP (it keeps its real end).

        Raises:
            SessionError: a task that was not submitted to this session.
            InvalidTaskError: no list, or something in it that is no task.
        """
        groups: dict[BackendRunner, list[ComputeTask]] = {}
        results: dict[str, CancelResult] = {}
        default = next(iter(self._runners.values()))
        for task in submitted(tasks, "cancel_tasks"):
            if task.is_final:
                results[task.uid] = CancelResult.TOO_LATE
            elif self._tasks.get(task.uid) is not task:
                raise SessionError(f"task {task.uid} is not a task of session {self.uid}")
            else:
                runner = default if task.backend is None else self._runners[task.backend]
                groups.setdefault(runner, []).append(task)
        for told in await asyncio.gather(*(runner.cancel(group) for runner, group in groups.items())):
            results |= told
        return results

    def observe(self, observer: object) -> None:
        """Add an observer: an object with hooks of `rhapsody.hookspecs.ObserverHooks`, marked `hookimpl`.

        Raises:
            InvalidBackendError: its hooks do not match the specification, or are coroutine functions.
        """
        self._observer_hooks = ObserverCaller([*self._observers, observer])
        self._observers.append(observer)

    # -- what the runners report -------------------------------------------------------------------------------------

    def _changed(self, changes: Sequence[Change]) -> None:
        """Apply what happened to tasks: the runners' sink."""
        accepted = self._tasks
        ended: list[str] = []
        transitions: list[Transition] | None = [] if self._observer_hooks.wants_transitions else None
        for task, event in changes:
            old = task.state
            if not apply(task, event):
                continue
            if transitions is not None:
                if old is TaskState.QUEUED and type(event) is Outcome and task.started_at is not None:
                    transitions.append((task, old, TaskState.RUNNING))  # its start was not worth a report of its own
                    old = TaskState.RUNNING
                transitions.append((task, old, task.state))
            if type(event) is Outcome:
                del accepted[task.uid]
                ended.append(task.uid)
        if ended and self._ends:
            self._ends.tell(ended)
        if transitions:
            self._observer_hooks.tasks_changed(self, transitions)


def _with_notes(problems: Sequence[BaseException]) -> BaseException:
    """Return the first of several errors, with the others as its notes."""
    for other in problems[1:]:
        problems[0].add_note(f"and: {other}")
    return problems[0]


def _seen(task: asyncio.Task[None]) -> None:
    """Look at how a task ended: whoever waited for it may have gone."""
    if not task.cancelled():
        task.exception()
