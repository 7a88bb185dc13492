"""One typed method around each hook, so that nothing else spells a hook's name, and the check of who has them."""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import pluggy

from ._marker import PROJECT, hookimpl
from .capabilities import INTERFACE_VERSION
from .errors import BackendError, InvalidBackendError
from .hookspecs import BackendHooks, ObserverHooks
from .log import get_logger

if TYPE_CHECKING:
    from .backends.base import ExecutionBackend
    from .batch import TaskBatch
    from .batching import AdaptiveBatching, Backlog
    from .context import BackendContext
    from .events import Event
    from .session import Session, Transition
    from .task import ComputeTask

log = get_logger(__name__)

REQUIRED: Final = ("rhapsody_init", "rhapsody_submit", "rhapsody_shutdown")
AWAITED: Final = ("rhapsody_init", "rhapsody_submit", "rhapsody_cancel", "rhapsody_shutdown")


class DefaultMonitor:
    """Core's `rhapsody_monitor`: drains the context's channel."""

    def __init__(self) -> None:
        self.context: BackendContext | None = None

    @hookimpl(trylast=True)
    def rhapsody_monitor(self) -> AsyncIterator[list[Event]]:
        """Yield what backends put into the channel."""
        assert self.context is not None, "the runner sets the context before it asks for events"
        return self.context.events.stream()


class BackendCaller:
    """Calls the hooks of one attached backend.

    What a hook returns may have to be awaited. A hook that ends by a CancelledError though nobody canceled it has
    failed: that is a BackendError, and never mistaken for the end of whoever called it.

    Raises:
        InvalidBackendError: hooks that are unknown, missing, take arguments that the specification does not name, or
            are coroutine functions and not awaited; or a backend written for another version of the interface.
    """

    def __init__(self, backend: ExecutionBackend, batching: AdaptiveBatching) -> None:
        self._name = backend.name
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(BackendHooks)
        check_interface(backend)
        try:
            self._manager.register(backend, name=backend.name)
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise InvalidBackendError(
                f"{describe_backend(backend)} does not match the hook specifications: {error}"
            ) from error
        _refuse_coroutines(self._manager, backend, describe_backend)
        missing = [name for name in REQUIRED if not getattr(self._manager.hook, name).get_hookimpls()]
        if missing:
            raise InvalidBackendError(
                f"{describe_backend(backend)} lacks the required hooks {', '.join(missing)}; "
                f"each is a method of that name with the marker rhapsody.plugin.hookimpl"
            )
        self.can_cancel = bool(self._manager.hook.rhapsody_cancel.get_hookimpls())
        self._monitor = DefaultMonitor()
        self._manager.register(batching)
        self._manager.register(self._monitor)
        self._hook: Any = self._manager.hook

    def init(self, context: BackendContext) -> Awaitable[None] | None:
        """Start the engine."""
        self._monitor.context = context
        return self._begin(self._hook.rhapsody_init, context=context)

    def validate(self, tasks: Sequence[ComputeTask]) -> None:
        """Refuse what the engine cannot honour."""
        self._call(self._hook.rhapsody_validate, tasks=tasks)

    def batch(self, backlog: Backlog) -> object:
        """Choose the next unit; the runner checks what comes back."""
        return self._call(self._hook.rhapsody_batch, backlog=backlog)

    def submit(self, batch: TaskBatch) -> Awaitable[None] | None:
        """Hand a unit to the engine."""
        return self._begin(self._hook.rhapsody_submit, batch=batch)

    def monitor(self) -> AsyncIterator[list[Event]]:
        """Return the stream of events."""
        result: AsyncIterator[list[Event]] = self._call(self._hook.rhapsody_monitor)
        return result

    async def cancel(self, tasks: Sequence[ComputeTask]) -> object:
        """Stop what the engine holds; the runner checks what comes back."""
        result = self._call(self._hook.rhapsody_cancel, tasks=tasks)
        return await self._end(self._hook.rhapsody_cancel, result) if inspect.isawaitable(result) else result

    def shutdown(self, wait: bool) -> Awaitable[None] | None:
        """Release the engine."""
        return self._begin(self._hook.rhapsody_shutdown, wait=wait)

    def _call(self, hook: Any, **arguments: object) -> Any:
        try:
            return hook(**arguments)
        except asyncio.CancelledError as error:  # of a plain function, which nobody can have canceled
            raise self._canceled(hook) from error

    def _begin(self, hook: Any, **arguments: object) -> Awaitable[None] | None:
        """Call a hook that has nothing to tell. Returns what is to be awaited, if anything is."""
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


class ObserverCaller:
    """Calls the observers of one session. None of them can harm it, or keep the others from being called."""

    def __init__(self, observers: Iterable[object]) -> None:
        self._hooks = [check_observer(observer).hook for observer in observers]
        self.wants_transitions = any(hook.rhapsody_tasks_changed.get_hookimpls() for hook in self._hooks)

    def opened(self, session: Session) -> None:
        """Tell that the session started."""
        self._tell("rhapsody_session_opened", session=session)

    def tasks_changed(self, session: Session, transitions: Sequence[Transition]) -> None:
        """Tell what changed."""
        self._tell("rhapsody_tasks_changed", session=session, transitions=transitions)

    def closed(self, session: Session) -> None:
        """Tell that the session ended."""
        self._tell("rhapsody_session_closed", session=session)

    def _tell(self, name: str, **what: object) -> None:
        for hook in self._hooks:
            try:
                getattr(hook, name)(**what)
            except (Exception, asyncio.CancelledError) as error:  # it watches; what goes wrong in it is its own trouble
                log.error("observer_failed", hook=name, exc_info=error)


def check_observer(observer: object) -> pluggy.PluginManager:
    """Return what calls the hooks of an observer.

    Raises:
        InvalidBackendError: its hooks do not match the specification, or are coroutine functions.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(ObserverHooks)
    try:
        manager.register(observer)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise InvalidBackendError(f"observer {observer!r} does not match the hook specifications: {error}") from error
    _refuse_coroutines(manager, observer, lambda observer: f"observer {observer!r}")
    return manager


def _refuse_coroutines(manager: pluggy.PluginManager, plugin: object, describe: Callable[[object], str]) -> None:
    """Refuse coroutine functions for hooks that are only called: nothing of them would ever run."""
    wrong = [
        caller.name
        for caller in manager.get_hookcallers(plugin) or ()
        for implementation in caller.get_hookimpls()
        if caller.name not in AWAITED and _is_coroutine(caller.name, implementation.function)
    ]
    if wrong:
        raise InvalidBackendError(
            f"{describe(plugin)} has {', '.join(wrong)} as a coroutine function, which is called and not awaited; "
            f"make it a plain method"
        )


def _is_coroutine(hook: str, function: object) -> bool:
    streams = hook != "rhapsody_monitor" and inspect.isasyncgenfunction(function)  # which is to be an async iterator
    return streams or inspect.iscoroutinefunction(function)


def is_being_canceled() -> bool:
    """Whether somebody has canceled the asyncio task that runs; a CancelledError without that comes from within it."""
    this = asyncio.current_task()
    return this is not None and this.cancelling() > 0


def check_interface(backend: object) -> None:
    """Refuse a backend that was written for another version of the interface.

    Raises:
        InvalidBackendError: it was.
    """
    version = getattr(backend, "interface_version", None)
    if version == INTERFACE_VERSION:
        return
    if not isinstance(version, int):
        remedy = f"it must declare interface_version = {INTERFACE_VERSION}"
    elif version < INTERFACE_VERSION:
        remedy = "upgrade its distribution"
    else:
        remedy = "upgrade rhapsody-core"
    raise InvalidBackendError(
        f"{describe_backend(backend)} was written for version {version} of the backend interface, and this "
        f"rhapsody-core speaks version {INTERFACE_VERSION}: {remedy}"
    )


def describe_backend(backend: object) -> str:
    """Name a backend's class, and the distribution and version that it comes from, for an error's sentence."""
    kind = backend if isinstance(backend, type) else type(backend)
    text = f"backend class {kind.__module__}.{kind.__qualname__}"
    package = kind.__module__.partition(".")[0]
    try:
        for name in importlib.metadata.packages_distributions().get(package, []):
            return f"{text} ({name} {importlib.metadata.version(name)})"
    except Exception:  # some distribution's metadata is damaged: the class is named all the same
        return text
    return text
