"""One typed method around each hook of a backend, so that nothing else spells a hook's name."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import pluggy

from rhapsody.errors import BackendError, InvalidBackendError, RhapsodyError
from rhapsody.hookspecs import PROJECT, BackendHooks, Backlog
from rhapsody.log import get_logger

if TYPE_CHECKING:
    from rhapsody.model.task import ComputeTask
    from rhapsody.protocol.batch import TaskBatch
    from rhapsody.seam.backend import AttachableBackend
    from rhapsody.seam.channel import Event
    from rhapsody.seam.context import BackendContext
from rhapsody.seam.checks import (
    check_interface,
    describe_backend,
    refuse_coroutines,
    refuse_unmarked,
)
from rhapsody.seam.supervision import is_being_canceled

log = get_logger(__name__)
REQUIRED: Final = ("rhapsody_init", "rhapsody_submit", "rhapsody_shutdown")


class BackendCaller:
    """Calls the hooks of one attached backend.

    What a hook returns may have to be awaited. A hook that ends by a CancelledError though nobody canceled it has
    failed: that is a BackendError, and never mistaken for the end of whoever called it.

    Raises:
        InvalidBackendError: hooks that are unknown, missing, unmarked, take arguments that the specification does not
            name, or are coroutine functions and not awaited; or a backend written for another version of the interface.
    """

    def __init__(self, backend: AttachableBackend, batching: object) -> None:
        self._name = backend.name
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(BackendHooks)
        check_interface(backend)
        refuse_unmarked(backend, describe_backend)
        try:
            self._manager.register(backend, name=backend.name)
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise InvalidBackendError(
                f"{describe_backend(backend)} does not match the hook specifications: {error}"
            ) from error
        refuse_coroutines(self._manager, backend, describe_backend)
        missing = [name for name in REQUIRED if not getattr(self._manager.hook, name).get_hookimpls()]
        if missing:
            raise InvalidBackendError(
                f"{describe_backend(backend)} lacks the required hooks {', '.join(missing)}; "
                f"each is a method of that name with the marker rhapsody.plugin.hookimpl"
            )
        self.can_cancel = bool(self._manager.hook.rhapsody_cancel.get_hookimpls())
        self.has_monitor = bool(self._manager.hook.rhapsody_monitor.get_hookimpls())
        gives_back = bool(self._manager.hook.rhapsody_withdraw.get_hookimpls())
        self.can_withdraw = gives_back and backend.capabilities.streams
        self._hook: Any = self._manager.hook
        self.add(batching)

    def add(self, plugin: object) -> None:
        """Add a plugin beside the backend, such as one that wraps its hooks."""
        self._manager.register(plugin)
        self._batch = _direct(self._hook.rhapsody_batch, "backlog")
        self._submit = _direct(self._hook.rhapsody_submit, "batch")

    def init(self, context: BackendContext) -> Awaitable[None] | None:
        """Start the engine."""
        return self._begin(self._hook.rhapsody_init, context=context)

    def validate(self, tasks: Sequence[ComputeTask]) -> None:
        """Refuse what the engine cannot honour.

        Raises:
            RhapsodyError: as the backend raised it.
            InvalidBackendError: the backend raised something else.
        """
        try:
            self._call(self._hook.rhapsody_validate, tasks=tasks)
        except RhapsodyError:
            raise
        except Exception as error:
            raise InvalidBackendError(
                f"rhapsody_validate of backend {self._name!r} raised {type(error).__name__}: {error}; a backend "
                f"refuses tasks by rhapsody.errors.UnsupportedError, which names the task, the backend and the remedy"
            ) from error

    def batch(self, backlog: Backlog) -> object:
        """Choose the next batch; the runner checks what comes back."""
        try:
            return self._batch(backlog)
        except asyncio.CancelledError as error:
            raise self._canceled(self._hook.rhapsody_batch) from error

    def submit(self, batch: TaskBatch) -> Awaitable[None] | None:
        """Hand a batch to the engine."""
        hook = self._hook.rhapsody_submit
        try:
            result = self._submit(batch)
        except asyncio.CancelledError as error:
            raise self._canceled(hook) from error
        return self._end(hook, result) if result is not None and inspect.isawaitable(result) else None

    def monitor(self) -> AsyncIterator[list[Event]]:
        """Return the backend's own stream of events; ask only where `has_monitor`."""
        result: AsyncIterator[list[Event]] = self._call(self._hook.rhapsody_monitor)
        return result

    async def cancel(self, tasks: Sequence[ComputeTask]) -> object:
        """Stop what the engine holds; the runner checks what comes back."""
        result = self._call(self._hook.rhapsody_cancel, tasks=tasks)
        return await self._end(self._hook.rhapsody_cancel, result) if inspect.isawaitable(result) else result

    async def withdraw(self, tasks: Sequence[ComputeTask]) -> None:
        """Ask back what has not begun."""
        pending = self._begin(self._hook.rhapsody_withdraw, tasks=tasks)
        if pending is not None:
            await pending

    def explain(self, task: ComputeTask) -> str | None:
        """Ask what a task waits for at the engine; None where nothing is known, or the hook fails."""
        try:
            answer = self._call(self._hook.rhapsody_explain, task=task)
        except Exception as error:  # nobody is harmed
            log.warning("explain_failed", backend=self._name, task=task.uid, error=repr(error))
            return None
        return answer if isinstance(answer, str) else None

    def shutdown(self, wait: bool) -> Awaitable[None] | None:
        """Release the engine."""
        return self._begin(self._hook.rhapsody_shutdown, wait=wait)

    def _call(self, hook: Any, **arguments: object) -> Any:
        try:
            return hook(**arguments)
        except asyncio.CancelledError as error:  # of a plain function, which nobody can have canceled
            raise self._canceled(hook) from error

    def _begin(self, hook: Any, **arguments: object) -> Awaitable[None] | None:
        """Call a hook without a result. Returns what is to be awaited, if anything is."""
        result = self._call(hook, **arguments)
        return self._end(hook, result) if result is not None and inspect.isawaitable(result) else None

    async def _end(self, hook: Any, result: Awaitable[Any]) -> Any:
        try:
            return await result
        except asyncio.CancelledError as error:
            if is_being_canceled():
                raise
            raise self._canceled(hook) from error

    def _canceled(self, hook: Any) -> BackendError:
        return BackendError(f"{hook.name} of backend {self._name!r} was canceled from within")


def _direct(hook: Any, argument: str) -> Callable[[object], Any]:
    """Return a hook of one argument as a plain function; pluggy's own call takes most of what a small batch costs."""
    found = hook.get_hookimpls()
    if any(each.hookwrapper or each.wrapper for each in found):
        return lambda value: hook(**{argument: value})
    calls = [(each.function, bool(each.argnames)) for each in reversed(found)]  # the last one is called first

    def call(value: object) -> Any:
        for function, takes_value in calls:
            result = function(value) if takes_value else function()
            if result is not None:
                return result
        return None

    return call
