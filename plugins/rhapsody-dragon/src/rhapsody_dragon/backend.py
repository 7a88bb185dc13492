"""What the three Dragon backends have in common: the runtime that they share, and its loss."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rhapsody.errors import BackendConfigurationError, BackendLostError
from rhapsody.plugin import BackendContext, BackendLost, Deadlines, ExecutionBackend

from . import runtime

#: What is being waited for, as the log says it.
WAITING_FOR: Final = {
    "launcher": "the launcher of a Dragon runtime",
    "services": "the services of the Dragon runtime",
    "head": "the head process of the Dragon runtime",
    "attach": "the attachment to the Dragon runtime",
    "workers": "the worker processes",
    "batch": "Dragon's Batch",
}


class DragonBackend(ExecutionBackend):
    """Acquires the runtime of this process at the start, and gives it back at the end."""

    deadlines = Deadlines(init=180.0, cancel=20.0, shutdown=60.0)

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self._context: BackendContext | None = None
        self._runtime: runtime.DragonRuntime | None = None
        self._acquiring: asyncio.Future[runtime.DragonRuntime] | None = None
        self._starting: asyncio.Future[None] | None = None
        self._give_up = threading.Event()
        self._forget: Callable[[], None] = lambda: None

    async def _open(self, context: BackendContext) -> None:
        """Acquire the runtime, then let `_start` start what this backend needs on it; both in a thread."""
        self._context = context
        self._give_up = threading.Event()
        self._acquiring = asyncio.ensure_future(asyncio.to_thread(runtime.acquire, self._waits_for, self._give_up))
        # Shielded: a thread cannot be interrupted, and what it acquires must reach `_close`, which waits for it.
        self._runtime = await asyncio.shield(self._acquiring)
        self._forget = self._runtime.on_lost(self._on_lost)
        self._starting = asyncio.ensure_future(asyncio.to_thread(self._start, self._runtime))
        await asyncio.shield(self._starting)

    def _start(self, dragon: runtime.DragonRuntime) -> None:
        """Start what the backend needs on the runtime; runs in a thread."""
        raise NotImplementedError

    def _stop(self) -> None:
        """End what `_start` and later work started; runs in a thread, also when the runtime is lost."""
        raise NotImplementedError

    def _engine_lost(self) -> None:
        """Stop touching the runtime: it is gone; runs in any thread."""

    async def _close(self) -> None:
        self._give_up.set()
        if self._acquiring is not None:
            await asyncio.wait([self._acquiring])
            if self._acquiring.exception() is None:  # otherwise its start has reported why
                self._runtime = self._acquiring.result()
            self._acquiring = None
        if self._starting is not None:
            await asyncio.wait([self._starting])
            self._starting.exception()  # has been reported, where somebody was left to hear it
            self._starting = None
        held = self._runtime
        if held is not None:
            self._forget()
            await asyncio.to_thread(self._release, held)
            self._runtime = None

    def _release(self, held: runtime.DragonRuntime) -> None:
        try:
            self._stop()
        finally:
            runtime.release(held)

    def _on_lost(self, error: BackendLostError) -> None:
        self._engine_lost()
        assert self._context is not None
        self._context.events.put([BackendLost(BackendLostError(f"backend {self.name!r}: {error}"))])

    def _waits_for(self, part: str) -> None:
        assert self._context is not None
        self._context.log.info("backend_waits_for", backend=self.name, what=WAITING_FOR[part])


def read_resources(resources: Mapping[str, Any] | None, name: str) -> tuple[int | None, str | None]:
    """Read `resources={"slots": N, "working_dir": ...}`; both may be left out.

    Raises:
        BackendConfigurationError: another key, or an unusable value.
    """
    known = dict(resources or {})
    slots, folder = known.pop("slots", None), known.pop("working_dir", None)
    if known:
        raise BackendConfigurationError(
            f"backend {name!r} has no resources {', '.join(map(repr, known))}; it has 'slots' and 'working_dir'"
        )
    check_count("slots", slots, name)
    if folder is not None and not isinstance(folder, str | Path):
        raise BackendConfigurationError(f"backend {name!r}: working_dir must be a path, not {folder!r}")
    return slots, None if folder is None else str(Path(folder).absolute())


def check_count(what: str, value: Any, name: str) -> None:
    """Refuse what is neither None nor a whole number above 0."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise BackendConfigurationError(f"backend {name!r}: {what} must be a whole number above 0, not {value!r}")


def node_policies() -> tuple[int, Sequence[Any]]:
    """How many processors the runtime has, and a policy for each of its nodes; no policies if there is only one."""
    from dragon.infrastructure.policy import Policy
    from dragon.native.machine import Node, System

    nodes = [Node(uid) for uid in System().nodes]
    if len(nodes) == 1:
        return len(os.sched_getaffinity(0)), ()
    policies = [Policy(placement=Policy.Placement.HOST_NAME, host_name=node.hostname) for node in nodes]
    return sum(node.num_cpus for node in nodes), policies
