"""Starts and shuts down the engine of one backend, each within its deadline and with the errors that users see."""

from __future__ import annotations

import asyncio
import time

from rhapsody.errors import BackendShutdownError, BackendStartError
from rhapsody.log import get_logger
from rhapsody.scheduling.deadlines import Overdue, bounded
from rhapsody.seam.backend import AttachableBackend
from rhapsody.seam.calls import BackendCaller
from rhapsody.seam.context import BackendContext
from rhapsody.seam.guard import BackendGuard

log = get_logger(__name__)


async def start_engine(backend: AttachableBackend, hooks: BackendCaller, context: BackendContext) -> None:
    """Start an engine; one that does not start is shut down.

    Raises:
        BackendStartError: it raised, or did not come up within its deadline.
        CancelledError: the start was interrupted; what its shutdown raised is a note of it.
    """
    deadline = backend.deadlines.init
    log.info("backend_starting", backend=backend.name)
    began = time.monotonic()
    cause: Exception
    try:
        await bounded(hooks.init(context), deadline)
    except Overdue as error:
        cause, problem = error, f"did not start within {deadline:g} seconds"
    except asyncio.CancelledError as error:
        await _note_shutdown(error, backend, hooks, context)
        raise
    except Exception as error:
        cause, problem = error, f"failed to start: {type(error).__name__}: {error}"
    else:
        log.info("backend_started", backend=backend.name, seconds=round(time.monotonic() - began, 3))
        return
    failure = BackendStartError(f"backend {backend.name!r} {problem}")
    await _note_shutdown(failure, backend, hooks, context)
    raise failure from cause


async def _note_shutdown(
    failure: BaseException, backend: AttachableBackend, hooks: BackendCaller, context: BackendContext
) -> None:
    try:
        await shut_down_engine(backend, hooks, context, wait=False)
    except BackendShutdownError as error:
        failure.add_note(str(error))


async def shut_down_engine(
    backend: AttachableBackend, hooks: BackendCaller, context: BackendContext, wait: bool
) -> None:
    """Shut an engine down, and end what its backend has left.

    Raises:
        BackendShutdownError: it raised, or did not end within its deadline.
    """
    deadline = backend.deadlines.shutdown
    await context.supervisor.closing(deadline)
    try:
        await bounded(hooks.shutdown(wait), deadline)
    except Overdue as error:
        raise BackendShutdownError(f"backend {backend.name!r} did not shut down within {deadline:g} seconds") from error
    except Exception as error:
        raise BackendShutdownError(
            f"backend {backend.name!r} failed to shut down: {type(error).__name__}: {error}"
        ) from error
    finally:
        if context.guard.is_used:
            await _close(context.guard)
        if context.store is not None:
            context.store.close()


async def _close(guard: BackendGuard) -> None:
    """Close a guard in a thread, for it may take seconds."""
    try:
        await asyncio.to_thread(guard.close)
    except RuntimeError:  # the interpreter is ending, and starts no thread any more
        guard.close()
