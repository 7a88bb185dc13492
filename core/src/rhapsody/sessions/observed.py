"""The observers of one session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rhapsody import settings
from rhapsody.errors import SessionError, describe
from rhapsody.hookspecs import ObservedSession
from rhapsody.model.outcome import Outcome
from rhapsody.model.task import ComputeTask
from rhapsody.model.transition import Transition
from rhapsody.protocol.batch import TaskBatch
from rhapsody.seam.discovery import load_observers, make_observer
from rhapsody.seam.observers import ObserverCaller


class Observers:
    """Calls the observers of a session: those that are installed, and those that the user adds.

    Args:
        session: passed to each hook.

    Attributes:
        want_transitions: whether any of them has the hook `rhapsody_tasks_changed`.
        want_submissions: the same of `rhapsody_tasks_submitted`.
    """

    def __init__(self, session: ObservedSession) -> None:
        self._session = session
        self._has_cache = False
        self._observers = list(load_observers())
        self._caller = ObserverCaller(self._observers)
        self._follow()

    def _follow(self) -> None:
        self.want_transitions = self._caller.wants_transitions
        self.want_batches = self._caller.wants_batches
        self.want_submissions = self._caller.wants_submissions

    def add(self, observer: object) -> None:
        """Call this one too, from now on.

        Raises:
            InvalidBackendError: its hooks do not match the specification, or are coroutine functions.
        """
        self._caller = ObserverCaller([*self._observers, observer])
        self._observers.append(observer)
        self._follow()

    def add_journal(self, journal: bool | str | None) -> None:
        """Add the journal, where it is asked for.

        Args:
            journal: True, False, "required", "resume", "rerun", or None for what the settings say.

        Raises:
            SessionError: it is something else.
        """
        asked = settings.journal() if journal is None else journal
        if asked not in (True, False, *settings.JOURNALS):
            raise SessionError(f'journal is True, False or "required", not {describe(asked)}')
        if asked:
            resume = asked if asked in ("resume", "rerun") else False
            self.add(make_observer("journal", required=asked == "required", resume=resume))

    def add_cache(self) -> None:
        """Add what knows the results of tasks that are marked `cache`, unless it is there."""
        if not self._has_cache:
            self._has_cache = True
            self.add(make_observer("cache", session=self._session))

    def opened(self) -> None:
        """Report that the session started its backends."""
        self._caller.opened(self._session)

    def tasks_submitted(self, tasks: Sequence[ComputeTask]) -> Mapping[str, Outcome]:
        """Return how tasks end that need not run.

        Raises:
            RhapsodyError: an observer refuses the tasks.
        """
        return self._caller.tasks_submitted(self._session, tasks)

    def tasks_changed(self, transitions: Sequence[Transition]) -> None:
        """Report changes of state, in order."""
        self._caller.tasks_changed(self._session, transitions)

    def batch_submitted(self, backend: str, batch: TaskBatch) -> None:
        """Report that a batch goes to an engine."""
        if self.want_batches:
            self._caller.batch_submitted(self._session, backend, batch)

    def closed(self) -> None:
        """Report that every task has ended, and the backends are shut down."""
        self._caller.closed(self._session)


class Observable:
    """The part of a session that its observers are added to."""

    _observers: Observers
    _telemetry: Any = None

    if TYPE_CHECKING:
        uid: str

        async def start(self) -> Self:
            """Start the backends."""

    def observe(self, observer: object) -> None:
        """Add an observer: an object with hooks of `rhapsody.hookspecs.ObserverHooks`, marked `hookimpl`.

        Raises:
            InvalidBackendError: its hooks do not match the specification, or are coroutine functions.
        """
        self._observers.add(observer)

    async def start_telemetry(
        self,
        resource_poll_interval: float = 5.0,
        checkpoint_interval: float | None = None,
        checkpoint_path: str | Path | None = None,
        span_processors: Sequence[Any] | None = None,
        metric_readers: Sequence[Any] | None = None,
        resource: Any = None,
    ) -> Any:
        """Start the session, and record what happens in it as spans and metrics of OpenTelemetry until it is closed.

        Args:
            resource_poll_interval: seconds between two readings of this machine's use.
            checkpoint_interval: seconds between two lines of metrics in the file; None: one, at the end.
            checkpoint_path: a folder in which `UID.TIME.telemetry.jsonl` is written; None: no file.
            span_processors: of OpenTelemetry; they receive the spans as these end.
            metric_readers: of OpenTelemetry.
            resource: of OpenTelemetry, which describes this program; None: what OTEL_SERVICE_NAME and others say.

        Raises:
            SessionError: it was started before, or OpenTelemetry is not installed.
            BackendStartError: as `start`.
        """
        if self._telemetry is not None:
            raise SessionError(f"session {self.uid} has telemetry already: get_telemetry()")
        options = {
            "resource_poll_interval": resource_poll_interval,
            "checkpoint_interval": checkpoint_interval,
            "checkpoint_path": checkpoint_path,
            "span_processors": span_processors,
            "metric_readers": metric_readers,
            "resource": resource,
        }
        observer = make_observer("telemetry", session=self, **options)
        await self.start()
        await observer.manager.start()
        self.observe(observer)
        self._telemetry = observer.manager
        return self._telemetry

    def get_telemetry(self) -> Any:
        """Return what `start_telemetry` has returned.

        Raises:
            SessionError: it was not called.
        """
        if self._telemetry is None:
            raise SessionError(f"session {self.uid} has no telemetry: await session.start_telemetry() first")
        return self._telemetry
