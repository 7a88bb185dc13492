"""An engine that is started before a session, or a workflow engine, has its backend."""

from __future__ import annotations

import asyncio
import os
import weakref

from rhapsody import settings
from rhapsody.errors import BackendShutdownError, BackendStartError
from rhapsody.log import get_logger
from rhapsody.scheduling.batching import AdaptiveBatching
from rhapsody.scheduling.engine import shut_down_engine, start_engine
from rhapsody.seam.backend import AttachableBackend
from rhapsody.seam.calls import BackendCaller
from rhapsody.seam.checks import check_declarations
from rhapsody.seam.context import BackendContext, unique_uid
from rhapsody.seam.supervision import is_being_canceled

log = get_logger(__name__)


class Standby:
    """Holds the engine of one backend from `await backend` until a runner takes it over.

    If nobody does, the engine is shut down with the loop, or at the end of the program.

    Args:
        backend: whose engine it is.

    Raises:
        InvalidBackendError: the backend does not match the hook specifications, or declares what core cannot read.
    """

    def __init__(self, backend: AttachableBackend) -> None:
        check_declarations(backend)
        self._backend = backend
        self._hooks = BackendCaller(backend, AdaptiveBatching(backend.batching, executables=False))
        self._loop = asyncio.get_running_loop()
        self._context = BackendContext(
            backend=backend.name, session=unique_uid(), work_dir=settings.work_dir(), loop=self._loop
        )
        self._starting = asyncio.create_task(self._start(), name=f"rhapsody start {backend.name}")
        self._starting.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # raised where it is awaited
        self._guard: asyncio.Task[None] | None = None
        self._at_exit: weakref.finalize[[AttachableBackend, BackendCaller, BackendContext, int], Standby] | None = None

    @property
    def is_up(self) -> bool:
        """Whether the engine has started, and nobody took it over."""
        return self._guard is not None

    async def started(self) -> None:
        """Wait for the start; whoever gives up the wait leaves it to the others, and to the shutdown.

        Raises:
            BackendStartError: it did not start, or belongs to another loop.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise BackendStartError(
                f"backend {self._backend.name!r} was started on another event loop; await it on the loop of its session"
            )
        try:
            await asyncio.shield(self._starting)
        except asyncio.CancelledError as error:
            if is_being_canceled():
                raise
            raise BackendStartError(f"backend {self._backend.name!r} was shut down while it started") from error

    async def _start(self) -> None:
        try:
            await start_engine(self._backend, self._hooks, self._context)
        except BaseException:
            self._backend._standby = None  # the next start is a new one
            raise
        self._guard = asyncio.create_task(self._keep(), name=f"rhapsody standby {self._backend.name}")
        self._at_exit = weakref.finalize(self, _at_exit, self._backend, self._hooks, self._context, os.getpid())

    async def _keep(self) -> None:
        try:
            await self._loop.create_future()
        finally:  # the loop is torn down around us: the last chance to clean up
            if self._guard is not None:
                self._release()
                try:
                    await self._end()
                except BackendShutdownError as error:
                    log.error("abandoned_backend_did_not_shut_down", backend=self._backend.name, error=str(error))

    async def _take(self) -> bool:
        """Take the engine off its guard. Returns whether it was there to take."""
        guard = self._guard
        if guard is None:
            return False
        self._release()
        guard.cancel()
        await asyncio.wait([guard])
        return True

    def _release(self) -> None:
        self._guard = None
        self._backend._standby = None
        if self._at_exit is not None:
            self._at_exit.detach()

    async def hand_over(self) -> BackendContext | None:
        """Give the engine to a runner.

        Returns:
            What the backend sees of its session from now on; None where the engine is gone.

        Raises:
            BackendStartError: it did not start, or belongs to another loop.
        """
        await self.started()
        return self._context if await self._take() else None

    async def shutdown(self) -> None:
        """Shut the engine down, also while it starts.

        Raises:
            BackendShutdownError: it did not shut down cleanly.
        """
        if not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting])  # bounded, as the hooks that it calls are
        if await self._take():
            await self._end()

    async def _end(self) -> None:
        try:
            await shut_down_engine(self._backend, self._hooks, self._context, wait=False)
        finally:
            await self._context.supervisor.close()
            self._context.events.close()


def _at_exit(backend: AttachableBackend, hooks: BackendCaller, context: BackendContext, owner: int) -> None:
    """Shut an engine down that nobody took over and whose loop is gone."""
    if os.getpid() != owner:  # a process that the program forked: the engine is not its own
        return
    try:
        asyncio.run(shut_down_engine(backend, hooks, context, wait=False))
    except (BackendShutdownError, RuntimeError) as error:  # RuntimeError: too late for a loop
        log.error("abandoned_backend_did_not_shut_down", backend=backend.name, error=str(error))
