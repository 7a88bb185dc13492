"""What the three Dragon backends have in common: the runtime that they share, and its loss."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from rhapsody.errors import BackendConfigurationError, BackendLostError
from rhapsody.plugin import BackendContext, BackendLost, Deadlines, ExecutionBackend

from . import runtime
from .runtime import START_DEADLINE

Result = TypeVar("Result")

#: Seconds between two tries to end a start that is no longer wanted, and two looks at whether the runtime is lost.
STOP_SECONDS: Final = 1.0
#: Seconds for what the backend started to end once the runtime is lost: whatever waits for an answer waits for good.
LOST_SECONDS: Final = 5.0


class DragonBackend(ExecutionBackend):
    """Acquires the runtime of this process at the start, and gives it back at the end."""

    deadlines = Deadlines(init=START_DEADLINE + 170.0, cancel=20.0, shutdown=90.0)

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
        self._acquiring = in_thread(runtime.acquire, self._waits_for, self._give_up)
        # Shielded: a thread cannot be interrupted, and what it acquires must reach `_close`, which waits for it.
        self._runtime = await asyncio.shield(self._acquiring)
        self._starting = in_thread(self._start, self._runtime)
        self._forget = self._runtime.on_lost(self._on_lost)
        await asyncio.shield(self._starting)

    def _start(self, dragon: runtime.DragonRuntime) -> None:
        """Start what the backend needs on the runtime; runs in a thread."""
        raise NotImplementedError

    def _stop(self) -> None:
        """End what `_start` and later work started; runs in a thread, also while `_start` does or the runtime is lost.

        May be called again.
        """
        raise NotImplementedError

    def _engine_lost(self) -> None:
        """Wake what waits for the runtime: it is gone, as its `lost` says; runs in any thread."""

    async def _close(self) -> None:
        self._give_up.set()
        if self._acquiring is not None:
            await asyncio.wait([self._acquiring])
            if self._acquiring.exception() is None:  # otherwise its start has reported why
                self._runtime = self._acquiring.result()
            self._acquiring = None
        held = self._runtime
        if held is None:
            return
        try:
            await self._end_all(held)
        finally:
            self._forget()
            self._runtime = self._starting = None
            await in_thread(runtime.release, held)

    async def _end_all(self, held: runtime.DragonRuntime) -> None:
        """End what was started, again and again while `_start` goes on starting."""
        while True:
            starting = self._starting
            is_last = starting is None or starting.done()
            await self._end_started(held)
            if starting is None or is_last:
                return
            await asyncio.wait([starting], timeout=STOP_SECONDS)

    async def _end_started(self, held: runtime.DragonRuntime) -> None:
        stopping = in_thread(self._stop)
        until = math.inf
        while not stopping.done() and time.monotonic() < until:
            await asyncio.wait([stopping], timeout=STOP_SECONDS)
            if held.lost is not None:
                until = min(until, time.monotonic() + LOST_SECONDS)
        if stopping.done():
            stopping.result()
        else:
            assert self._context is not None
            self._context.log.warning("stop_abandoned", backend=self.name, why="the Dragon runtime does not answer")

    def _on_lost(self, error: BackendLostError) -> None:
        self._engine_lost()
        assert self._context is not None
        self._context.events.put([BackendLost(BackendLostError(f"backend {self.name!r}: {error}"))])
        if (starting := self._starting) is not None:  # its thread may wait for an answer of the runtime for good
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                starting.get_loop().call_soon_threadsafe(_settle, starting, None, error)

    def _waits_for(self, what: str) -> None:
        assert self._context is not None
        self._context.log.info("backend_waits_for", backend=self.name, what=what)


def in_thread(function: Callable[..., Result], *args: Any) -> asyncio.Future[Result]:
    """Call a function in a thread that nobody waits for, neither the loop nor Python when they end.

    A request to a Dragon runtime that has died waits for good.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def run() -> None:
        result, problem = None, None
        try:
            result = function(*args)
        except BaseException as error:
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            loop.call_soon_threadsafe(_settle, future, result, problem)

    threading.Thread(target=run, name=f"rhapsody-dragon-{function.__name__}", daemon=True).start()
    return future


def _settle(future: asyncio.Future[Any], result: Any, problem: BaseException | None) -> None:
    if future.done():
        return
    if problem is None:
        future.set_result(result)
    else:
        future.set_exception(problem)
        future.exception()  # seen: whoever waited may be gone


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
