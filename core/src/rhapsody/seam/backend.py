"""`AttachableBackend`: what core needs of every backend: its name, what it declares, and which session has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rhapsody.errors import BackendConfigurationError, InvalidBackendError, describe
from rhapsody.seam.capabilities import INTERFACE_VERSION, BackendCapabilities, Batching, Deadlines


class AttachableBackend:
    """The half of `rhapsody.plugin.ExecutionBackend` that a session drives; see there.

    Raises:
        BackendConfigurationError: an unusable name, batching or max_in_flight.
    """

    interface_version: ClassVar[int] = INTERFACE_VERSION
    capabilities: BackendCapabilities = BackendCapabilities()
    deadlines: Deadlines = Deadlines()

    def __init__(
        self,
        name: str,
        *,
        batching: Batching | Mapping[str, Any] | bool | float | None = None,
        max_in_flight: int | None = None,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise BackendConfigurationError(f"the name of a backend must be text, not {describe(name)}")
        if max_in_flight is not None and (type(max_in_flight) is not int or max_in_flight < 1):
            raise BackendConfigurationError(
                f"backend {name!r}: max_in_flight must be a positive whole number of tasks, or None for no bound, "
                f"not {describe(max_in_flight)}"
            )
        self.name = name
        self.max_in_flight = max_in_flight
        self.batching = Batching.of(batching)
        self.attached_to: list[str] = []
        self.is_attached = False
        self._session: str | None = None
        self._standby: Any = None  # a `Standby` of core's, which holds the engine that `await backend` has started
        self._work_dir: str | None = None  # set by a workflow engine: where files of its tasks go

    def __repr__(self) -> str:
        """Name the class and the backend."""
        return f"<{type(self).__name__} {self.name!r}>"

    def attach(self, session: str) -> None:
        """Belong to a session. Core's.

        Raises:
            InvalidBackendError: it belongs to another one, which is not closed.
        """
        if self._session is not None:
            raise InvalidBackendError(
                f"backend {self.name!r} belongs to session {self._session}, which is not closed; a session needs a "
                f"backend of its own"
            )
        self._session = session
        self.is_attached = True
        if session not in self.attached_to[-1:]:
            self.attached_to.append(session)

    def detach(self, session: str) -> None:
        """Belong to nobody again. Core's."""
        if self._session == session:
            self._session = None
            self.is_attached = False
