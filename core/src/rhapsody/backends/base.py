"""`ExecutionBackend`: what every backend has in common."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, ClassVar, Self

from ..capabilities import INTERFACE_VERSION, BackendCapabilities, Batching, Deadlines
from ..errors import BackendConfigurationError, InvalidBackendError, describe
from ..standalone import Standalone, TaskStatesMap


class ExecutionBackend:
    """The base class of backends.

    A backend implements the hooks of `rhapsody.hookspecs` as methods marked `rhapsody.plugin.hookimpl`; it hands
    batches to its engine and reports what came back. A session drives it. Workflow engines that drive a backend by
    itself use `submit_tasks`, `cancel_task`, `register_callback` and `shutdown` (see `rhapsody.standalone`), which
    stand on the same runner.

    Args:
        name: the name under which tasks choose the backend.
        batching: how tasks are grouped: a `Batching`, True or False, the seconds of work in a unit, or a
            mapping of `Batching`'s fields.

    Attributes:
        interface_version: of the backend interface that the class was written for.
        capabilities: what the backend can do.
        deadlines: how long the runner waits for its hooks.

    Raises:
        BackendConfigurationError: an unusable name or batching.
    """

    interface_version: ClassVar[int] = INTERFACE_VERSION
    capabilities: BackendCapabilities = BackendCapabilities()
    deadlines: Deadlines = Deadlines()

    def __init__(self, name: str, *, batching: Batching | Mapping[str, Any] | bool | float | None = None) -> None:
        if not isinstance(name, str) or not name:
            raise BackendConfigurationError(f"the name of a backend must be text, not {describe(name)}")
        self.name = name
        self.batching = Batching.of(batching)
        self.attached_to: list[str] = []
        self.is_attached = False
        self._work_dir: str | None = None  # set by a workflow engine: where files of its tasks go
        self._session: str | None = None
        self._standalone = Standalone(self)

    def __repr__(self) -> str:
        """Name the class and the backend."""
        return f"<{type(self).__name__} {self.name!r}>"

    def __await__(self) -> Generator[Any, None, Self]:
        """Return the backend, ready to be given to a session or a workflow engine; its engine starts with them."""
        return self
        yield  # a generator that ends at once

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

    # -- driven without a session: what workflow engines call (see rhapsody.standalone) ------------------------------

    def register_callback(self, callback: Callable[[dict[str, Any], str], Any]) -> None:
        """Have `callback(task, state)` called on the loop's thread when a task runs, and when it has ended."""
        self._standalone.callback = callback

    def get_task_states_map(self) -> type[TaskStatesMap]:
        """Return the names of the states that callbacks receive."""
        return TaskStatesMap

    async def submit_tasks(self, tasks: Sequence[dict[str, Any]]) -> None:
        """Run tasks described by dicts; results are written into the same dicts before the callback is called.

        Raises:
            InvalidTaskError, UnsupportedError: nothing was accepted.
            BackendStartError: the backend did not start.
        """
        await self._standalone.submit(tasks)

    async def cancel_task(self, uid: str) -> bool:
        """Stop a task. Returns whether it was stopped, or will never start."""
        return await self._standalone.cancel(uid)

    async def shutdown(self) -> None:
        """Stop what still runs and release the engine; may be called at any time, and again."""
        await self._standalone.shutdown()
