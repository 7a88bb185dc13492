"""Drives one attached backend: starts it, feeds it from the backlog, applies what it reports, shuts it down.

This is the one place that calls a backend's hooks, and the one that awaits them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn

from rhapsody.errors import (
    BackendLostError,
    BackendShutdownError,
    BackendStartError,
    InvalidBackendError,
    UnsupportedError,
)
from rhapsody.log import get_logger
from rhapsody.model.outcome import CancelResult
from rhapsody.model.task import ComputeTask
from rhapsody.scheduling.batching import AdaptiveBatching
from rhapsody.scheduling.driver import EndsOf, FlowDriver, OnBatch, Retries, Sink
from rhapsody.scheduling.engine import shut_down_engine, start_engine
from rhapsody.scheduling.standby import Standby
from rhapsody.seam.backend import AttachableBackend
from rhapsody.seam.calls import BackendCaller
from rhapsody.seam.channel import BackendLost
from rhapsody.seam.checks import check_declarations
from rhapsody.seam.context import BackendContext

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
        retries: hands tasks whose attempt failed to a backend once more.
        on_batch: called with the backend's name and each batch before it goes down.
        ends_of: waits until the ends of tasks, by uid, are recorded.
        on_abandoned: called if the loop is torn down around an open runner.

    Raises:
        InvalidBackendError: the backend does not match the hook specifications, or declares what core cannot read.
    """

    def __init__(
        self,
        backend: AttachableBackend,
        *,
        session: str,
        work_dir: Path,
        sink: Sink,
        retries: Retries,
        ends_of: EndsOf,
        on_batch: OnBatch = lambda backend, batch: None,
        on_abandoned: Callable[[], None] = lambda: None,
    ) -> None:
        check_declarations(backend)
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
        self._flow = FlowDriver(
            self.name,
            self._hooks,
            batching,
            backend.deadlines,
            sink=sink,
            retries=retries,
            ends_of=ends_of,
            on_batch=on_batch,
            on_lost=self._lost,
            most=backend.max_in_flight,
        )
        self._context: BackendContext | None = None
        self._starting: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._drain: asyncio.Task[None] | None = None
        self._monitor: asyncio.Task[None] | None = None  # the backend's own, if it has one

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
        self.phase = Phase.STARTING
        try:
            self._context = await self._taken_over()
            if self._context is None:
                loop = asyncio.get_running_loop()
                self._context = BackendContext(
                    backend=self.name, session=self._session, work_dir=self._work_dir, loop=loop
                )
                await start_engine(self.backend, self._hooks, self._context)
        except BackendStartError as error:
            self._end(error)
            raise
        except asyncio.CancelledError:
            self._end(BackendStartError(f"backend {self.name!r} was interrupted while it started"))
            raise
        self.phase = Phase.OPEN
        self._drain = asyncio.create_task(self._follow(self._context), name=f"rhapsody events {self.name}")
        if self._hooks.has_monitor:
            self._monitor = self._context.supervisor.run("monitor", self._relay(self._context))
        self._flow.open(self._context)

    async def _taken_over(self) -> BackendContext | None:
        """Take the engine that `await backend` has started, if it did."""
        standby = self.backend._standby
        context = await standby.hand_over() if isinstance(standby, Standby) else None
        if context is not None:
            context.backend = self.name
            context.sandbox_path = self._work_dir / self._session
        return context

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
        assert self._context is not None, "the backend was started"
        self.phase = Phase.CLOSING
        await self._flow.stop()
        try:
            await shut_down_engine(self.backend, self._hooks, self._context, wait)
        finally:
            if self._monitor is not None:  # its last events come before the channel is closed
                await asyncio.wait([self._monitor], timeout=_LAST_EVENTS)
                if not self._monitor.done():
                    log.warning("monitor_did_not_end", backend=self.name)
            await self._context.supervisor.close()
            self._context.events.close()
            if self._drain is not None:
                await asyncio.wait([self._drain], timeout=_LAST_EVENTS)
            self._end(self.error)

    def _end(self, error: Exception | None) -> None:
        """Leave no task behind: whatever has no outcome by now will never have one."""
        self.phase = Phase.CLOSED
        self.error = self.error or error
        if self._context is not None:
            self._context.events.close()
        self._flow.end(error or BackendLostError(f"backend {self.name!r} was shut down before the task ended"))

    async def _follow(self, context: BackendContext) -> None:
        """Apply events for the life of the backend."""
        try:
            await context.events.serve(self._flow.apply)
        except asyncio.CancelledError:
            if self.phase in (Phase.OPEN, Phase.LOST):  # the loop is torn down around us: the last chance to clean up
                await self._abandon(context)
            raise
        except Exception as error:
            lost = BackendLostError(f"backend {self.name!r}: its events cannot be applied: {error!r}")
            lost.__cause__ = error
            self._flow.lose(lost)

    async def _relay(self, context: BackendContext) -> None:
        """Put what the backend's own monitor yields among the other events."""
        async for events in self._hooks.monitor():
            context.events.put(events)
        if self.phase is Phase.OPEN:
            error = InvalidBackendError(f"the monitor of backend {self.name!r} ended while the backend is open")
            context.events.put([BackendLost(error)])

    async def _abandon(self, context: BackendContext) -> None:
        self._on_abandoned()
        self.phase = Phase.CLOSING
        await self._flow.stop()
        failure: Exception | None = None
        try:
            await shut_down_engine(self.backend, self._hooks, context, wait=False)
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
        if self._context is None or self.phase not in (Phase.OPEN, Phase.LOST, Phase.STARTING):
            return
        self.phase = Phase.CLOSING
        try:
            asyncio.run(shut_down_engine(self.backend, self._hooks, self._context, wait=False))
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
            UnsupportedError: it cannot, or they are larger than its engine; nothing was accepted.
        """
        self._hooks.validate(tasks)
        if self._context is None or self._context.capacity.cores is None:
            return
        for task in tasks:
            problem = None if task.resources is None else self._context.capacity.lacks(task.resources)
            if problem is not None:
                raise UnsupportedError(f"task {task.uid}: backend {self.name!r}: {problem}")

    def accept(self, tasks: Sequence[ComputeTask]) -> None:
        """Take tasks that the session has accepted."""
        self._flow.accept(tasks)

    async def cancel(self, tasks: Sequence[ComputeTask]) -> Mapping[str, CancelResult]:
        """Stop tasks, and say of each what became of it."""
        return await self._flow.cancel(tasks)

    async def expire(self, task: ComputeTask) -> None:
        """Stop the attempt of a task that has run for its timeout."""
        await self._flow.expire(task)

    def explain(self, task: ComputeTask) -> str:
        """Return a sentence that says what a task of this backend waits for, where it runs, or how it ended."""
        if self.phase in (Phase.NEW, Phase.STARTING):
            return f"task {task.uid} waits for backend {self.name!r} to start"
        return self._flow.explain(task)
