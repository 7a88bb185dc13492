"""One typed method around each hook, so that nothing else spells a hook's name, and the check of who has them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import pluggy

from ._marker import PROJECT, hookimpl
from .capabilities import INTERFACE_VERSION
from .errors import InvalidBackendError
from .hookspecs import BackendHooks, ObserverHooks
from .log import get_logger

if TYPE_CHECKING:
    from .backends.base import ExecutionBackend
    from .batch import TaskBatch
    from .batching import AdaptiveBatching, Backlog
    from .context import BackendContext
    from .events import CancelResult, Event
    from .session import Session, Transition
    from .task import ComputeTask

log = get_logger(__name__)

REQUIRED: Final = ("rhapsody_init", "rhapsody_submit", "rhapsody_shutdown")


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

    Raises:
        InvalidBackendError: hooks that are unknown, missing, or take arguments that the specification does not
            name; or a backend written for another version of the interface.
    """

    def __init__(self, backend: ExecutionBackend, batching: AdaptiveBatching) -> None:
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
        result: Awaitable[None] | None = self._hook.rhapsody_init(context=context)
        return result

    def validate(self, tasks: Sequence[ComputeTask]) -> None:
        """Refuse what the engine cannot honour."""
        self._hook.rhapsody_validate(tasks=tasks)

    def batch(self, backlog: Backlog) -> object:
        """Choose the next unit; the runner checks what comes back."""
        return self._hook.rhapsody_batch(backlog=backlog)

    def submit(self, batch: TaskBatch) -> Awaitable[None] | None:
        """Hand a unit to the engine."""
        result: Awaitable[None] | None = self._hook.rhapsody_submit(batch=batch)
        return result

    def monitor(self) -> AsyncIterator[list[Event]]:
        """Return the stream of events."""
        result: AsyncIterator[list[Event]] = self._hook.rhapsody_monitor()
        return result

    def cancel(
        self, tasks: Sequence[ComputeTask]
    ) -> Awaitable[Mapping[str, CancelResult]] | Mapping[str, CancelResult]:
        """Stop what the engine holds."""
        result: Awaitable[Mapping[str, CancelResult]] | Mapping[str, CancelResult]
        result = self._hook.rhapsody_cancel(tasks=tasks)
        return result

    def shutdown(self, wait: bool) -> Awaitable[None] | None:
        """Release the engine."""
        result: Awaitable[None] | None = self._hook.rhapsody_shutdown(wait=wait)
        return result


class ObserverCaller:
    """Calls the observers of one session. None of them can harm it, or keep the others from being called."""

    def __init__(self, observers: Iterable[object]) -> None:
        self._hooks: list[Any] = []
        for observer in observers:
            manager = pluggy.PluginManager(PROJECT)
            manager.add_hookspecs(ObserverHooks)
            try:
                manager.register(observer)
                manager.check_pending()
            except pluggy.PluginValidationError as error:
                raise InvalidBackendError(
                    f"observer {observer!r} does not match the hook specifications: {error}"
                ) from error
            self._hooks.append(manager.hook)
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
            except Exception as error:  # an observer watches; what goes wrong in it is not the session's trouble
                log.error("observer_failed", hook=name, exc_info=error)


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
