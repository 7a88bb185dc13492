"""What core gives to a backend at its start."""

from __future__ import annotations

import asyncio
from pathlib import Path

from .events import Capacity, CapacityChanged, EventChannel
from .log import Logger, get_logger


class BackendContext:
    """A backend's view of the session that it serves.

    Attributes:
        backend: the name under which the backend is attached.
        session: the uid of the session.
        loop: the loop of the session, on which all hooks are called.
        events: where to put what happens, from any thread.
        log: a logger of the backend's own.
    """

    def __init__(self, *, backend: str, session: str, work_dir: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.backend = backend
        self.session = session
        self.loop = loop
        self.events = EventChannel(loop)
        self.log: Logger = get_logger(f"rhapsody.backend.{backend}")
        self.sandbox_path = work_dir / session
        self._capacity = Capacity(slots=1)

    @property
    def sandbox(self) -> Path:
        """The session's folder, `work_dir/uid`; made when it is first asked for."""
        self.sandbox_path.mkdir(parents=True, exist_ok=True)
        return self.sandbox_path

    @property
    def capacity(self) -> Capacity:
        """What the engine takes at present."""
        return self._capacity

    def set_capacity(self, capacity: Capacity) -> None:
        """Say how much the engine takes; from any thread, and as often as it changes."""
        self.events.put([CapacityChanged(capacity)])
        self._capacity = capacity
