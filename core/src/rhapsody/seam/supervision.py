"""Runs what a backend does beside its hooks: polls, its own monitor, functions that block in threads."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final, ParamSpec, TypeVar

from rhapsody.errors import BackendLostError, InvalidBackendError, describe
from rhapsody.log import get_logger
from rhapsody.seam.channel import BackendLost, EventChannel

P = ParamSpec("P")
T = TypeVar("T")
log = get_logger(__name__)
_CANCEL_GRACE: Final = 2.0  # seconds that a canceled poll has to return before it is abandoned


class Supervisor:
    """Runs the coroutines of one backend until it is closed. One that fails has lost the backend.

    Args:
        backend: its name.
        events: where the loss is reported.
    """

    def __init__(self, backend: str, events: Callable[[], EventChannel]) -> None:
        self._backend = backend
        self._events = events
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads: set[Future[Any]] = set()
        self._is_closing = False

    def run(self, what: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine; what it raises becomes BackendLost, and its traceback goes to the log."""
        task = asyncio.create_task(self._supervised(what, work), name=f"rhapsody {what} {self._backend}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _supervised(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError as error:
            if is_being_canceled():
                raise
            self._lose(f"{what} was canceled from within", error)
        except Exception as error:
            self._lose(f"{what} raised {type(error).__name__}: {error}", error)

    def _lose(self, problem: str, cause: BaseException) -> None:
        if self._is_closing:  # the engine is being shut down: what polls it may fail
            return
        log.error("backend_failed", backend=self._backend, problem=problem, exc_info=cause)
        lost = BackendLostError(f"backend {self._backend!r}: its {problem}")
        lost.__cause__ = cause
        self._events().put([BackendLost(lost)])

    def poll(self, interval: float, function: Callable[[], Awaitable[None] | None]) -> asyncio.Task[None]:
        """Call and await a function now and every `interval` seconds; see `BackendContext.poll`."""
        if not callable(function):
            if inspect.iscoroutine(function):
                function.close()
            raise InvalidBackendError(
                f"poll takes a coroutine function, which it calls each time, not {describe(function)}: "
                f"context.poll(0.5, self.poll_queue)"
            )
        if isinstance(interval, bool) or not isinstance(interval, int | float) or interval <= 0:
            raise InvalidBackendError(f"poll takes the seconds between two calls first, not {describe(interval)}")

        async def repeat() -> None:
            while True:
                answer = function()
                if answer is not None:
                    await answer
                await asyncio.sleep(interval)

        return self.run(f"poll {getattr(function, '__name__', function)}", repeat())

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread of its own; see `BackendContext.in_thread`."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # from now on, canceling whoever awaits it leaves it alone

        def call() -> None:
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        self._threads.add(future)
        future.add_done_callback(self._threads.discard)
        # Not the loop's executor: the end of the program would wait for a function that hangs.
        threading.Thread(target=call, name=f"rhapsody thread of {self._backend}", daemon=True).start()
        return await asyncio.wrap_future(future)

    async def closing(self, seconds: float) -> None:
        """The backend is about to be shut down: let the functions in threads end, so that it sees what they made."""
        self._is_closing = True
        threads = [asyncio.wrap_future(future) for future in self._threads]
        if threads:
            _, late = await asyncio.wait(threads, timeout=seconds)
            if late:
                log.error("functions_in_threads_did_not_end", backend=self._backend, count=len(late), seconds=seconds)

    async def close(self) -> None:
        """Cancel what still runs."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CANCEL_GRACE)


def is_being_canceled() -> bool:
    """Whether somebody has canceled the asyncio task that runs; a CancelledError without that comes from within it."""
    this = asyncio.current_task()
    return this is not None and this.cancelling() > 0
