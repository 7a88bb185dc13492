"""Loads and calls the functions of tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import Context, copy_context
from types import BuiltinFunctionType, CoroutineType, FunctionType, ModuleType, TracebackType
from typing import Any, Final

from rhapsody.protocol.reducers import is_named_function
from rhapsody.protocol.shared import Stored, load
from rhapsody.worker.seeding import Seeded

_LAST_WORDS: Final = 1.0  # seconds that what functions left on a loop has to end
_KEPT_FUNCTIONS: Final = 256
_KEPT_BYTES: Final = 2**26  # of their pickles; there may be one more beyond them
_kept: dict[bytes | Stored, Callable[..., Any]] = {}  # functions by their pickles


class AsyncFunctions:
    """Runs coroutines on an event loop of the worker's own, made with the first and kept for the others."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any], context: Context | None = None) -> Any:
        """Wait for the coroutine that a function returned; it runs in the context of the call."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        task = self._loop.create_task(coroutine, context=context)
        try:
            return self._loop.run_until_complete(task)
        except BaseException:
            if not task.done():  # what was raised came from something else on the loop
                task.cancel()
            elif not task.cancelled():
                task.exception()  # seen: the loop itself passed it on (SystemExit)
            raise

    def close(self) -> None:
        """End the loop, and with it whatever the functions left on it; what does not end in a second is left."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        try:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.wait(left, timeout=_LAST_WORDS))
            loop.run_until_complete(asyncio.wait_for(loop.shutdown_asyncgens(), _LAST_WORDS))
        except TimeoutError:  # an asynchronous generator that does not let go
            pass
        finally:
            loop.close()  # which does not wait for the threads of the loop's executor

    def __enter__(self) -> AsyncFunctions:
        """Use as a context that closes."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def run_function(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    loops: AsyncFunctions,
    context: Context | None = None,
) -> Any:
    """Call a function, and await what it returns where that is a coroutine.

    Args:
        function: what to call.
        args: of the call.
        kwargs: of the call.
        loops: awaits coroutines.
        context: the call runs in a copy of it, and so leaves no context variable behind; None: the current one.
    """
    context = copy_context() if context is None else context.copy()
    value = context.run(function, *args, **kwargs)
    if type(value) is CoroutineType:
        return loops.run(value, context)
    return value


def load_function(pickled: bytes | Stored) -> Callable[..., Any]:
    """Load a function; one that carries no data of its own once, and any other for each task."""
    function = _kept.get(pickled)
    if function is None:
        function = load(pickled)
        if _is_plain(function):
            if len(_kept) >= _KEPT_FUNCTIONS or sum(map(len, _kept)) > _KEPT_BYTES:
                _kept.clear()  # rare, and safe where other threads run batches too
            _kept[pickled] = function
    assert function is not None
    return function


def forget_functions() -> None:
    """Load functions anew from now on."""
    _kept.clear()


def _is_plain(function: object) -> bool:
    """Whether it is what a `def` in a module gives, cached or not, a class, or a function of an extension module.

    A method, a partial, a closure or an object that can be called carries data, which a call may change.
    """
    if isinstance(function, BuiltinFunctionType):
        return isinstance(function.__self__, ModuleType)  # not a method: list.append is of this type too
    if isinstance(function, Seeded):
        return function.number is None and (function.func is None or _is_plain(function.func))
    if is_named_function(function):  # what its cache holds is for all
        return True
    return isinstance(function, type) or (isinstance(function, FunctionType) and not function.__closure__)
