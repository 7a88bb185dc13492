"""Calls the observers of a session."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import pluggy

from rhapsody.errors import InvalidBackendError, RhapsodyError
from rhapsody.hookspecs import PROJECT, ObservedSession, ObserverHooks
from rhapsody.log import get_logger
from rhapsody.model.outcome import Outcome
from rhapsody.model.task import ComputeTask
from rhapsody.model.transition import Transition
from rhapsody.protocol.batch import TaskBatch
from rhapsody.seam.checks import refuse_coroutines, refuse_unmarked

log = get_logger(__name__)


class ObserverCaller:
    """Calls the observers of one session. None of them can harm it, or keep the others from being called."""

    def __init__(self, observers: Iterable[object]) -> None:
        self._hooks = [(type(observer).__qualname__, check_observer(observer).hook) for observer in observers]
        self._failed: set[tuple[str, str]] = set()
        self.wants_transitions = any(hook.rhapsody_tasks_changed.get_hookimpls() for _, hook in self._hooks)
        self.wants_batches = any(hook.rhapsody_batch_submitted.get_hookimpls() for _, hook in self._hooks)
        self.wants_submissions = any(hook.rhapsody_tasks_submitted.get_hookimpls() for _, hook in self._hooks)

    def opened(self, session: ObservedSession) -> None:
        """Report that the session started."""
        self._call("rhapsody_session_opened", session=session)

    def tasks_submitted(self, session: ObservedSession, tasks: Sequence[ComputeTask]) -> dict[str, Outcome]:
        """Ask for how tasks end that need not run; the first observer that answers for a task counts.

        Raises:
            RhapsodyError: an observer refuses the tasks.
        """
        known: dict[str, Outcome] = {}
        for observer, hook in self._hooks:
            try:
                known = (hook.rhapsody_tasks_submitted(session=session, tasks=tasks) or {}) | known
            except RhapsodyError:
                raise
            except (Exception, asyncio.CancelledError) as error:
                self._log(observer, "rhapsody_tasks_submitted", error)
        return known

    def tasks_changed(self, session: ObservedSession, transitions: Sequence[Transition]) -> None:
        """Report changes of state."""
        self._call("rhapsody_tasks_changed", session=session, transitions=transitions)

    def batch_submitted(self, session: ObservedSession, backend: str, batch: TaskBatch) -> None:
        """Report that a batch goes to an engine."""
        self._call("rhapsody_batch_submitted", session=session, backend=backend, batch=batch)

    def closed(self, session: ObservedSession) -> None:
        """Report that the session ended."""
        self._call("rhapsody_session_closed", session=session)

    def _call(self, name: str, **what: object) -> None:
        for observer, hook in self._hooks:
            try:
                getattr(hook, name)(**what)
            except (Exception, asyncio.CancelledError) as error:  # what goes wrong in an observer harms no session
                self._log(observer, name, error)

    def _log(self, observer: str, name: str, error: BaseException) -> None:
        if (observer, name) not in self._failed:  # a broken one would else fill the log
            self._failed.add((observer, name))
            log.warning("observer_failed", observer=observer, hook=name, exc_info=error)


def check_observer(observer: object) -> pluggy.PluginManager:
    """Return what calls the hooks of an observer.

    Raises:
        InvalidBackendError: its hooks do not match the specification, lack the marker, or are coroutine functions.
    """
    refuse_unmarked(observer, lambda observer: f"observer {observer!r}")
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(ObserverHooks)
    try:
        manager.register(observer)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise InvalidBackendError(f"observer {observer!r} does not match the hook specifications: {error}") from error
    refuse_coroutines(manager, observer, lambda observer: f"observer {observer!r}")
    return manager
