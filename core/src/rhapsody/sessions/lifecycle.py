"""The life of a session: it starts its backends, ends its tasks and shuts its backends down."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import warnings
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Any, Final

from rhapsody.errors import InvalidBackendError, SessionClosedError, SessionError, UnclosedSessionWarning
from rhapsody.log import bind, get_logger
from rhapsody.model.outcome import CancelResult
from rhapsody.model.task import ComputeTask
from rhapsody.scheduling.runner import BackendRunner
from rhapsody.seam.backend import AttachableBackend
from rhapsody.sessions.observed import Observers
from rhapsody.sessions.recorder import Recorder, Tally

_GRACE: Final = 2.0  # seconds that tasks which cannot be stopped have to end by themselves when a session is canceled
_LAST_REPORTS: Final = 0.1  # seconds, at least, in which the ends of tasks that were stopped are reported
_TALLIED: Final = ("tasks", "failed", "canceled")
log = get_logger(__name__)


class Phase(Enum):
    """Where a session is in its life."""

    NEW = auto()
    OPEN = auto()
    CLOSING = auto()
    CLOSED = auto()


class Lifecycle:
    """Starts and ends one session, once, however many ask for it.

    Args:
        uid: of the session.
        runners: of its backends, by name.
        recorder: of its tasks.
        observers: of the session.
        cancel: stops tasks.
        clear: called when the last task has ended.

    Attributes:
        phase: where the session is in its life.
        loop: the loop that it belongs to, once it was used.
        in_block: whether it is left by `async with`: then nobody forgets to close it.
    """

    def __init__(
        self,
        uid: str,
        runners: Mapping[str, BackendRunner],
        recorder: Recorder,
        observers: Observers,
        cancel: Callable[[Sequence[ComputeTask]], Awaitable[Mapping[str, CancelResult]]],
        clear: Callable[[], None],
    ) -> None:
        self.phase = Phase.NEW
        self.loop: asyncio.AbstractEventLoop | None = None
        self.in_block = False
        self._uid = uid
        self._runners = runners
        self._recorder = recorder
        self._observers = observers
        self._cancel = cancel
        self._clear = clear
        self._opened_at: float | None = None
        self._starting: asyncio.Task[None] | None = None
        self._starters = 0  # callers that wait for the start
        self._closing: asyncio.Task[None] | None = None
        self._hurry: asyncio.Event | None = None  # set: stop waiting for tasks, cancel them
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def bind(self) -> None:
        """Hold on to the loop that the session belongs to, and to its backends.

        Raises:
            InvalidBackendError: one of them is attached to another session.
            SessionError: the session belongs to another loop.
        """
        loop = asyncio.get_running_loop()
        if self.loop is None:
            attached: list[AttachableBackend] = []
            try:
                for runner in self._runners.values():
                    runner.backend.attach(self._uid)
                    attached.append(runner.backend)
            except InvalidBackendError:
                for backend in attached:  # and no other: it may belong to another session, even to one of this uid
                    backend.detach(self._uid)
                raise
            self.loop = loop
        elif self.loop is not loop:
            raise SessionError(f"session {self._uid} belongs to another event loop; make a session in each loop")

    def refuse_if_closed(self) -> None:
        """Refuse what needs an open session, or one that can be opened.

        Raises:
            SessionClosedError: it was closed, or is being closed.
        """
        if self.phase in (Phase.CLOSING, Phase.CLOSED) or self._closing is not None:
            raise SessionClosedError(f"session {self._uid} is closed; make a new one")

    # -- start -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the backends; any number of callers wait for the one start.

        Raises:
            BackendStartError: one of them did not start; the others were shut down, and the session is closed.
        """
        if self.phase is Phase.OPEN:
            return
        self.bind()
        self.refuse_if_closed()
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(), name=f"rhapsody start {self._uid}")
            self._starting.add_done_callback(_retrieve_exception)
        self._starters += 1
        try:
            await asyncio.shield(self._starting)
        except asyncio.CancelledError:
            if self._starters == 1:  # nobody else waits for this start
                self._starting.cancel()
                await _see_through(self._starting)
            raise
        finally:
            self._starters -= 1
        self.refuse_if_closed()

    async def _start(self) -> None:
        bind(session=self._uid)  # what the backends start inherits it
        starts = [asyncio.ensure_future(runner.start()) for runner in self._runners.values()]
        problems: list[BaseException] = []
        try:
            await asyncio.wait(starts, return_when=asyncio.FIRST_EXCEPTION)
        except asyncio.CancelledError as interrupted:
            problems.append(interrupted)
        for start in starts:
            if start.cancelled():
                problems.append(SessionClosedError(f"session {self._uid} was closed while it started"))
            elif start.done() and (problem := start.exception()) is not None:
                problems.append(problem)
        if problems:
            await self._shut_down_backends(wait=False)
            await asyncio.gather(*starts, return_exceptions=True)  # retrieved: the first of them is raised
            self.phase = Phase.CLOSED
            raise _with_notes(problems)
        self.phase = Phase.OPEN
        self._opened_at = time.monotonic()
        runners = list(self._runners.values())
        self._finalizer = weakref.finalize(self, _at_exit, self._uid, os.getpid(), runners, not self.in_block)
        self._observers.opened()

    # -- close -----------------------------------------------------------------------------------------------------

    async def close(self, wait: bool) -> None:
        """End the session; any number of callers wait for the one end.

        Args:
            wait: for the tasks that were submitted; otherwise, or once one caller does not wait, they are canceled.

        Raises:
            BackendShutdownError: a backend did not shut down cleanly; the others did, or are in the exception's notes.
        """
        if self.phase is Phase.CLOSED:
            return
        self.bind()
        if self._closing is None:
            self._hurry = asyncio.Event()
            self._closing = asyncio.create_task(self._close(self._hurry), name=f"rhapsody close {self._uid}")
            self._closing.add_done_callback(_retrieve_exception)
        assert self._hurry is not None
        if not wait:
            self._hurry.set()
        try:
            await asyncio.shield(self._closing)
        except asyncio.CancelledError:
            self._hurry.set()
            await _see_through(self._closing)
            raise

    async def _close(self, hurry: asyncio.Event) -> None:
        bind(session=self._uid)
        if self.phase is Phase.OPEN:
            self.phase = Phase.CLOSING
        if self.phase is Phase.CLOSING:
            await self._end_tasks(hurry)
        problems = await self._shut_down_backends(wait=not hurry.is_set())
        self._recorder.fail_unended(self._uid)  # tasks of a backend that was never started, or that lost track
        self._clear()
        self.phase = Phase.CLOSED
        if self._finalizer is not None:
            self._finalizer.detach()
        self._observers.closed()
        self._log(problems)
        if problems:
            raise _with_notes(problems)

    def _log(self, problems: Sequence[BaseException]) -> None:
        """Write one line for each backend and one for the session, with what became of the tasks."""
        tallies = {name: self._recorder.tally_of(name) for name in self._runners}
        for name, tally in tallies.items():
            log.info("backend_summary", backend=name, **_counts([tally]))
        seconds = 0.0 if self._opened_at is None else round(time.monotonic() - self._opened_at, 3)
        counts = _counts(list(tallies.values()))
        log.info("session_summary", seconds=seconds, problems=len(problems), **counts)
        for problem in problems:
            log.error("backend_not_closed", exc_info=problem)

    async def _end_tasks(self, hurry: asyncio.Event) -> None:
        """Wait for the tasks; once there is a hurry, cancel them, and give those that cannot be stopped a moment."""
        recorder = self._recorder
        drained = asyncio.ensure_future(recorder.ends.wait(recorder.tasks))
        hurried = asyncio.ensure_future(hurry.wait())
        try:
            await asyncio.wait([drained, hurried], return_when=asyncio.FIRST_COMPLETED)
            if not drained.done():
                until = time.monotonic() + _GRACE
                await self._cancel(list(recorder.tasks.values()))
                await asyncio.wait([drained], timeout=max(_LAST_REPORTS, until - time.monotonic()))
            if not drained.done():
                recorder.fail_unended(self._uid)
        finally:
            drained.cancel()
            hurried.cancel()

    async def _shut_down_backends(self, wait: bool) -> list[BaseException]:
        ends = await asyncio.gather(
            *(runner.shutdown(wait) for runner in self._runners.values()), return_exceptions=True
        )
        self._detach()
        return [problem for problem in ends if isinstance(problem, BaseException)]

    def _detach(self) -> None:
        for runner in self._runners.values():
            runner.backend.detach(self._uid)

    # -- nobody closed it ------------------------------------------------------------------------------------------

    def abandoned(self) -> None:
        """The loop is being torn down around an open session: its runners end it, and this warns."""
        if self.phase in (Phase.OPEN, Phase.CLOSING):
            was_open = self.phase is Phase.OPEN
            self.phase = Phase.CLOSED
            self._detach()
            if self._finalizer is not None:
                self._finalizer.detach()
            if was_open and self._closing is None and not self.in_block:
                _warn_unclosed(self._uid)


def _counts(tallies: Sequence[Tally]) -> dict[str, int]:
    """Add up tallies, for a line of the log."""
    tasks, failed, canceled = (sum(getattr(tally, name) for tally in tallies) for name in _TALLIED)
    return {"tasks": tasks, "done": tasks - failed - canceled, "failed": failed, "canceled": canceled}


def _warn_unclosed(uid: str) -> None:
    warnings.warn(
        f"session {uid} was never closed: use `async with Session(...)`, or `await session.close()`",
        UnclosedSessionWarning,
        stacklevel=2,
    )


def _at_exit(uid: str, owner: int, runners: list[BackendRunner], warns: bool) -> None:
    """Clean up after a session that nobody closed and whose loop is gone."""
    if os.getpid() != owner:  # a process that the program forked: the session is not its own
        return
    if warns:
        _warn_unclosed(uid)
    for runner in runners:
        with contextlib.suppress(Exception):  # the interpreter is ending: the others must have their turn
            runner.shutdown_without_loop()


def _with_notes(problems: Sequence[BaseException]) -> BaseException:
    """Return the first of several errors, with the others as its notes."""
    for other in problems[1:]:
        problems[0].add_note(f"and: {other}")
    return problems[0]


async def _see_through(work: asyncio.Task[None]) -> None:
    """Wait for work that is bounded, however often the waiter is canceled: a scope of anyio cancels again and again."""
    while not work.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([work])


def _retrieve_exception(task: asyncio.Task[None]) -> None:
    """Retrieve a task's exception, which asyncio would log: whoever waited for the task may have gone."""
    if not task.cancelled():
        task.exception()
