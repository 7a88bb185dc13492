"""Drives one attached backend: starts it, feeds it from the backlog, applies what it reports, shuts it down.

This is the one place that calls a backend's hooks, and the one that awaits them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, NoReturn

from .batching import AdaptiveBatching
from .context import BackendContext
from .errors import (
    BackendLostError,
    BackendShutdownError,
    BackendStartError,
    InvalidBackendError,
    UnclosedSessionWarning,
)
from .events import CancelResult
from .flow import Overdue, Sink, TaskFlow, bounded
from .hooks import BackendCaller, is_being_canceled
from .log import get_logger
from .task import ComputeTask

if TYPE_CHECKING:
    from .backends.base import ExecutionBackend

log = get_logger(__name__)

_LAST_EVENTS: Final = 2.0  # seconds that a monitor may take to end after its backend was shut down


class Phase(Enum):
    """Where a runner is in its life."""

    NEW = auto()
    STARTING = auto()
    OPEN = auto()
    LOST = auto()  # the engine is gone; what is left is to shut down
    CLOSING = auto()
    CLOSED = auto()


class BackendRunner:
    """Runs one backend for one session.

    Args:
        backend: the plugin.
        session: uid of the session.
        work_dir: where the session's sandbox will be.
        sink: called on the loop with what happened to tasks, in order.
        on_abandoned: called if the loop is torn down around an open runner.

    Raises:
        InvalidBackendError: the backend does not match the hook specifications.
    """

    def __init__(
        self,
        backend: ExecutionBackend,
        *,
        session: str,
        work_dir: Path,
        sink: Sink,
        on_abandoned: Callable[[], None] = lambda: None,
    ) -> None:
        self.backend = backend
        self.name = backend.name
        self.phase = Phase.NEW
        self.error: Exception | None = None  # why it was lost
        self._traceback: TracebackType | None = None  # of the error, as it came: each raise adds to it
        self._session = session
        self._work_dir = work_dir
        self._on_abandoned = on_abandoned
        batching = AdaptiveBatching(backend.batching, executables=backend.capabilities.batch_executables)
        self._hooks = BackendCaller(backend, batching)
        self._flow = TaskFlow(self.name, self._hooks, batching, backend.deadlines, sink=sink, on_lost=self._lost)
        self._context: BackendContext | None = None
        self._starting: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._monitor: asyncio.Task[None] | None = None

    @property
    def slots(self) -> int:
        """How many tasks the engine runs at the same time, once it has started."""
        return self._context.capacity.slots if self._context is not None else 0

    # -- the life of the backend ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the backend; any number of callers wait for the one start.

        Raises:
            BackendStartError: it raised, or did not come up within its deadline. It has been shut down.
        """
        if self.phase is Phase.OPEN:
            return
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(), name=f"rhapsody start {self.name}")
        try:
            await asyncio.shield(self._starting)
        except asyncio.CancelledError:
            if not self._starting.done():  # the caller was interrupted: nobody waits for this start any more
                self._starting.cancel()
                await asyncio.wait([self._starting], timeout=self.backend.deadlines.shutdown)
            raise

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = self.backend.deadlines.init
        self.phase = Phase.STARTING
        self._context = BackendContext(backend=self.name, session=self._session, work_dir=self._work_dir, loop=loop)
        log.info("backend_starting", backend=self.name)
        began = time.monotonic()
        problem: str | None = None
        cause: BaseException | None = None
        try:
            await bounded(self._hooks.init(self._context), deadline)
        except Overdue as error:
            cause, problem = error, f"did not start within {deadline:g} seconds"
        except asyncio.CancelledError as error:
            cause = error
        except Exception as error:
            cause, problem = error, f"failed to start: {type(error).__name__}: {error}"
        if cause is None:
            self.phase = Phase.OPEN
            self._monitor = asyncio.create_task(self._follow(), name=f"rhapsody monitor {self.name}")
            log.info("backend_started", backend=self.name, seconds=round(time.monotonic() - began, 3))
            self._flow.open(self._context)
            return
        self.phase = Phase.CLOSING
        failure = BackendStartError(f"backend {self.name!r} {problem or 'was interrupted while it started'}")
        try:
            await self._call_shutdown(wait=False)
        except BackendShutdownError as error:
            failure.add_note(str(error))
        self._end(failure)
        if problem is None:
            raise asyncio.CancelledError
        raise failure from cause

    async def shutdown(self, wait: bool) -> None:
        """Shut the backend down; any number of callers wait for the one shutdown.

        Raises:
            BackendShutdownError: it raised, or did not end within its deadline.
        """
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting])  # bounded, as the hooks that it calls are
        if self._closing is None:
            if self.phase in (Phase.NEW, Phase.CLOSED):
                self._end(None)
                return
            self._closing = asyncio.create_task(self._shutdown(wait), name=f"rhapsody shutdown {self.name}")
        await asyncio.shield(self._closing)

    async def _shutdown(self, wait: bool) -> None:
        self.phase = Phase.CLOSING
        await self._flow.stop()
        try:
            await self._call_shutdown(wait)
        finally:
            assert self._context is not None
            self._context.events.close()
            if self._monitor is not None:
                await asyncio.wait([self._monitor], timeout=_LAST_EVENTS)
                if not self._monitor.done():
                    log.warning("monitor_did_not_end", backend=self.name)
                    self._monitor.cancel()
                    await asyncio.wait([self._monitor], timeout=_LAST_EVENTS)
            self._end(self.error)

    async def _call_shutdown(self, wait: bool) -> None:
        deadline = self.backend.deadlines.shutdown
        try:
            await bounded(self._hooks.shutdown(wait), deadline)
        except Overdue as error:
            raise BackendShutdownError(
                f"backend {self.name!r} did not shut down within {deadline:g} seconds"
            ) from error
        except Exception as error:
            raise BackendShutdownError(
                f"backend {self.name!r} failed to shut down: {type(error).__name__}: {error}"
            ) from error

    def _end(self, error: Exception | None) -> None:
        """Leave no task behind: whatever has no outcome by now will never have one."""
        self.phase = Phase.CLOSED
        self.error = self.error or error
        if self._context is not None:
            self._context.events.close()
        self._flow.fail_all(error or BackendLostError(f"backend {self.name!r} was shut down before the task ended"))

    async def _follow(self) -> None:
        """Apply events for the life of the backend."""
        try:
            async for events in self._hooks.monitor():
                self._flow.apply(events)
                events.clear()  # what they hold is the tasks' now, and must not live on in a waiting frame
            if self.phase is Phase.OPEN:
                self._flow.lose(
                    InvalidBackendError(f"the monitor of backend {self.name!r} ended while the backend is open")
                )
        except asyncio.CancelledError as error:
            if not is_being_canceled():
                self._lose("was canceled from within", error)
                return
            if self.phase in (Phase.OPEN, Phase.LOST):  # the loop is torn down around us: the last chance to clean up
                await self._abandon()
            raise
        except Exception as error:
            self._lose(f"raised {type(error).__name__}: {error}", error)

    def _lose(self, problem: str, cause: BaseException) -> None:
        lost = BackendLostError(f"backend {self.name!r}: its monitor {problem}")
        lost.__cause__ = cause
        self._flow.lose(lost)

    async def _abandon(self) -> None:
        self._on_abandoned()
        self.phase = Phase.CLOSING
        await self._flow.stop()
        failure: Exception | None = None
        try:
            await self._call_shutdown(wait=False)
        except BackendShutdownError as error:
            failure = error
            log.error("abandoned_backend_did_not_shut_down", backend=self.name, error=str(error))
        self._end(failure)

    def _lost(self, error: Exception) -> None:
        log.error("backend_lost", backend=self.name, error=str(error))
        self.phase = Phase.LOST
        self.error = error
        self._traceback = error.__traceback__

    def shutdown_without_loop(self) -> None:
        """Shut down at the end of the program, after the session's loop is gone."""
        if self.phase not in (Phase.OPEN, Phase.LOST, Phase.STARTING):
            return
        self.phase = Phase.CLOSING
        try:
            asyncio.run(self._call_shutdown(wait=False))
        except (
            BackendShutdownError,
            RuntimeError,
        ) as error:  # RuntimeError: the interpreter is too far gone for a loop
            log.error("abandoned_backend_did_not_shut_down", backend=self.name, error=str(error))
        self.phase = Phase.CLOSED

    # -- tasks -----------------------------------------------------------------------------------------------------

    def refuse(self) -> NoReturn:
        """Take nothing more: the engine is gone.

        Raises:
            BackendError: why.
        """
        assert self.error is not None
        raise self.error.with_traceback(self._traceback)

    def validate(self, tasks: Sequence[ComputeTask]) -> None:
        """Refuse tasks that the backend cannot honour.

        Raises:
            UnsupportedError: it cannot; nothing was accepted.
        """
        self._hooks.validate(tasks)

    def enqueue(self, tasks: Sequence[ComputeTask]) -> None:
        """Take tasks that the session has accepted."""
        self._flow.enqueue(tasks)

    async def cancel(self, tasks: Sequence[ComputeTask]) -> Mapping[str, CancelResult]:
        """Stop tasks, and say of each what became of it."""
        return await self._flow.cancel(tasks)


def warn_unclosed(uid: str) -> None:
    """Say that a session was never closed."""
    warnings.warn(
        f"session {uid} was never closed: use `async with Session(...)`, or `await session.close()`",
        UnclosedSessionWarning,
        stacklevel=2,
    )


def at_exit(uid: str, owner: int, runners: list[BackendRunner], warns: bool) -> None:
    """Clean up after a session that nobody closed and whose loop is gone."""
    if os.getpid() != owner:  # a process that the program forked: the session is not its own
        return
    if warns:
        warn_unclosed(uid)
    for runner in runners:
        with contextlib.suppress(Exception):  # the interpreter is ending: the others must have their turn
            runner.shutdown_without_loop()
