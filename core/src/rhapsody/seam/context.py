"""What core gives to a backend at its start."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
import warnings
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from rhapsody.errors import InvalidBackendError, describe
from rhapsody.log import Logger, get_logger
from rhapsody.protocol.store import SharedStore
from rhapsody.seam.allocation import current_allocation
from rhapsody.seam.capacity import Capacity, CapacityChanged
from rhapsody.seam.channel import EventChannel
from rhapsody.seam.guard import BackendGuard
from rhapsody.seam.supervision import Supervisor
from rhapsody.version import __version__

P = ParamSpec("P")
T = TypeVar("T")
_numbers = itertools.count(1)


def unique_uid() -> str:
    """Return a name for a session that is unique on this machine, and sorts by time."""
    return f"rhapsody.{time.strftime('%Y%m%d-%H%M%S')}.{os.getpid()}.{next(_numbers)}"


class BackendContext:
    """A backend's view of the session that it serves.

    Attributes:
        backend: the name under which the backend is attached.
        session: the uid of the session; of an engine that was started before it had one, a name of its own.
        loop: the loop of the session, on which all hooks are called.
        events: where to put what happens, from any thread. Core drains it for the life of the backend.
        guard: ends what the backend has started, should the backend not do so.
        store: where large arguments are stored, so that each travels once to a worker; set by a backend that declares
            `shared_data`. None: they travel within the batch.
        log: a logger of the backend's own.
    """

    def __init__(self, *, backend: str, session: str, work_dir: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.backend = backend
        self.session = session
        self.loop = loop
        self.events = EventChannel(loop)
        self.guard = BackendGuard()
        self.store: SharedStore | None = None
        self.log: Logger = get_logger(f"rhapsody.backend.{backend}", session=session, backend=backend)
        self.sandbox_path = work_dir / session  # a session that takes a started engine over puts its own here
        self.supervisor = Supervisor(backend, lambda: self.events)  # core's
        self._capacity = Capacity(slots=1)
        self._warned: set[str] = set()

    @property
    def sandbox(self) -> Path:
        """The session's folder, `work_dir/uid`; made when it is first asked for, for this user alone."""
        self.sandbox_path.mkdir(mode=0o700, parents=True, exist_ok=True)  # it has pickles, which would run as this user
        return self.sandbox_path

    @property
    def capacity(self) -> Capacity:
        """What the engine takes at present."""
        return self._capacity

    def set_capacity(self, capacity: Capacity) -> None:
        """Say how much the engine takes; from any thread, and as often as it changes.

        Raises:
            InvalidBackendError: no Capacity.
        """
        if not isinstance(capacity, Capacity):
            raise InvalidBackendError(
                f"backend {self.backend!r}: set_capacity takes a Capacity, not {describe(capacity)}: "
                f"context.set_capacity(Capacity(slots=4))"
            )
        self.events.put([CapacityChanged(capacity)])
        self._capacity = capacity

    def warn(self, event: str, text: str) -> None:
        """Log a warning and issue it as a RuntimeWarning on the loop, each text once; from any thread."""
        if text in self._warned:
            return
        self._warned.add(text)
        self.log.warning(event, detail=text)
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody is left to be warned
            self.loop.call_soon_threadsafe(partial(warnings.warn, text, RuntimeWarning, stacklevel=1))

    def warn_of_one_node(self, remedy: str) -> None:
        """Warn where the backend uses this node alone, and the program's allocation has others that nobody uses."""
        allocation = current_allocation()
        if allocation is not None and allocation.nodes > 1 and allocation.copies < allocation.nodes:
            job = f"{allocation.system} job {allocation.job}"
            text = f"backend {self.backend!r} uses one of the {allocation.nodes} nodes of {job}: {remedy}"
            self.warn("one_node_of_several", text)

    def compare_core(self, theirs: str, where: str) -> None:
        """Warn where workers run another version of rhapsody-core than this program; `where` says whose they are."""
        if theirs != __version__:
            text = f"backend {self.backend!r}: rhapsody-core {__version__} here and {theirs} {where}"
            self.warn("versions_differ", text)

    def poll(self, interval: float, function: Callable[[], Awaitable[None] | None]) -> asyncio.Task[None]:
        """Call `function` on the loop, now and every `interval` seconds, until the backend is shut down.

        For engines that must be asked what became of their jobs. What `function` raises is BackendLost: everything
        that the engine holds fails with an error that says so, and the traceback goes to the log. During the shutdown
        it is ignored; after it the poll is canceled.

        Args:
            interval: seconds from the end of a call to the next.
            function: a coroutine function without arguments, or a plain one that does not block.

        Returns:
            The asyncio task, to be canceled where it is not needed any more.

        Raises:
            InvalidBackendError: no function, or no such interval.
        """
        return self.supervisor.poll(interval, function)

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that blocks, such as an engine's `start`, in a thread of its own, and return its result.

        When the start is interrupted or takes longer than its deadline, the function cannot be stopped. Core then
        waits for its end (for `deadlines.shutdown` at most) before it calls `rhapsody_shutdown`, which so finds the
        engine that the function has made: let the function itself store it in the backend, not the line that awaits it.
        """
        return await self.supervisor.in_thread(function, *args, **kwargs)
