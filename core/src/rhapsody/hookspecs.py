"""The hooks of an execution backend, in the order of its life, and those of an observer.

Signatures and contracts only: `rhapsody.runner` calls the backend's, `rhapsody.session` the observers'. An
implementation carries the marker `rhapsody.plugin.hookimpl`, and may leave out arguments that it does not use. Those
whose result is an Awaitable may be plain functions or coroutine functions; the others are called and not awaited, so
a coroutine function is refused there. Hooks are called for batches, never for single tasks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from .batch import TaskBatch
    from .batching import Backlog
    from .context import BackendContext
    from .events import CancelResult, Event
    from .session import Session, Transition
    from .task import ComputeTask

hookspec = pluggy.HookspecMarker("rhapsody")


class BackendHooks:
    """What a backend implements: `rhapsody_init`, `rhapsody_submit` and `rhapsody_shutdown`, and others at will."""

    @hookspec(firstresult=True)
    def rhapsody_init(self, context: BackendContext) -> Awaitable[None] | None:
        """Acquire the engine. Called once, before any submit.

        Call `context.set_capacity` before returning: until then one task at a time is submitted.

        Returns: the engine is ready.
        Raises: nothing is held; `rhapsody_shutdown` is called all the same.
        """

    @hookspec(firstresult=True)
    def rhapsody_validate(self, tasks: Sequence[ComputeTask]) -> None:
        """Refuse what the engine cannot honour, before any task is accepted. Optional.

        Called with those tasks of one `submit_tasks` for this backend that ask for something: each executable, and
        each function that carries `resources` or `backend_options`. It comes before `rhapsody_init` where the submit
        is what starts the session, so it must do without the engine. Must not block and must not change anything.

        Returns: every task can be run as it is described.
        Raises: UnsupportedError, naming the task, the backend, what it cannot do and what to do instead. The whole
        list is refused.
        """

    @hookspec(firstresult=True)
    def rhapsody_batch(self, backlog: Backlog) -> Sequence[ComputeTask] | None:
        """Take the next unit off the backlog: the tasks that the engine will run as one. Optional.

        Called whenever tasks wait and there is room, and again for the next, so that each decision uses what was
        just learned. The default groups tasks by what they proved to take (`rhapsody.batching`).

        Returns: what `backlog.take` gave, at least one task. None leaves this unit to the default.
        Raises: nothing.
        """

    @hookspec(firstresult=True)
    def rhapsody_submit(self, batch: TaskBatch) -> Awaitable[None] | None:
        """Hand one batch to the engine.

        Returns: the engine holds the batch; every later outcome arrives as an event.
        Raises: SubmitError if none of it was sent; its tasks fail with that error.
        """

    @hookspec(firstresult=True)
    def rhapsody_monitor(self) -> AsyncIterator[list[Event]]:  # type: ignore[empty-body]  # a specification
        """Yield what happens, as lists of events, for the backend's life. Optional.

        The default drains `context.events`, into which any thread may put. The iterator ends after the backend was
        shut down; one that ends or raises before that has lost the backend.
        """

    @hookspec(firstresult=True)
    def rhapsody_cancel(  # type: ignore[empty-body]  # a specification
        self, tasks: Sequence[ComputeTask]
    ) -> Awaitable[Mapping[str, CancelResult]] | Mapping[str, CancelResult]:
        """Stop tasks that the engine holds. Optional; without it, what the engine holds cannot be stopped.

        Returns: for each uid what became of the task. For NEVER_STARTED and STOPPED the backend also reports
        Outcome(state=CANCELED), before or soon after it returns.
        Raises: nothing was stopped.
        """

    @hookspec(firstresult=True)
    def rhapsody_shutdown(self, wait: bool) -> Awaitable[None] | None:
        """Release everything that `rhapsody_init` acquired, and stop what still runs.

        Called once for each `rhapsody_init`, also a failed one. Idempotent, and bounded in time. With `wait` every
        task has ended before; without it the user left by an exception or the program is ending, and speed matters.

        Returns: no process, thread, socket or temporary file of the backend is left.
        Raises: something is left; the error says what.
        """


class ObserverHooks:
    """What an observer of a session implements; all of them optional, and called on the session's loop."""

    @hookspec
    def rhapsody_session_opened(self, session: Session) -> None:
        """Learn that a session started its backends."""

    @hookspec
    def rhapsody_tasks_changed(self, session: Session, transitions: Sequence[Transition]) -> None:
        """Learn of changes of state, in order, many at a time; a task's own fields are already up to date."""

    @hookspec
    def rhapsody_session_closed(self, session: Session) -> None:
        """Learn that every task of the session has ended and its backends are shut down."""
