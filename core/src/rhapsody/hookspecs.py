"""The hooks of an execution backend, in the order of its life, and those of an observer.

Signatures and contracts only: `rhapsody.seam.calls` calls those of a backend, `rhapsody.seam.observers` those of an
observer. An implementation carries the marker `rhapsody.plugin.hookimpl`, and may leave out arguments that it does not
use. Those whose result is an Awaitable may be plain functions or coroutine functions; the others are called and not
awaited, so a coroutine function is refused there. Hooks are called for batches, never for single tasks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import pluggy

if TYPE_CHECKING:
    from rhapsody.model.outcome import CancelResult, Outcome
    from rhapsody.model.task import ComputeTask
    from rhapsody.model.transition import Transition
    from rhapsody.protocol.batch import TaskBatch
    from rhapsody.seam.channel import Event
    from rhapsody.seam.context import BackendContext

PROJECT: Final = "rhapsody"
hookspec: Final = pluggy.HookspecMarker(PROJECT)
hookimpl: Final = pluggy.HookimplMarker(PROJECT)


class Backlog(Protocol):
    """The tasks that wait for one backend, as `rhapsody_batch` sees them, by priority and in order of submission.

    Attributes:
        slots: tasks that the engine runs at the same time.
        free: slots that no batch in flight takes.
    """

    slots: int
    free: int

    def __len__(self) -> int:
        """Return how many tasks wait."""

    def peek(self) -> ComputeTask:
        """Return the first task that waits.

        Raises:
            IndexError: none does.
        """

    def take(self, count: int) -> list[ComputeTask]:
        """Take up to `count` tasks off the front. What is taken must be returned from `rhapsody_batch`."""

    def take_while(self, wanted: Callable[[ComputeTask], bool]) -> list[ComputeTask]:
        """Take tasks off the front until one is not wanted, which stays."""


class ObservedSession(Protocol):
    """A session, as its observers see it.

    Attributes:
        uid: the session's name.
        work_dir: where its folder is.
    """

    uid: str
    work_dir: Path

    @property
    def backends(self) -> tuple[str, ...]:
        """The names of the backends, the default one first."""

    @property
    def sandbox(self) -> Path:
        """The session's folder; it is there once a file was written to it."""

    @property
    def is_closed(self) -> bool:
        """Whether the session has ended."""


class BackendHooks:
    """What a backend implements: `rhapsody_init`, `rhapsody_submit`, `rhapsody_shutdown`; the others are optional."""

    @hookspec(firstresult=True)
    def rhapsody_init(self, context: BackendContext) -> Awaitable[None] | None:
        """Acquire the engine. Called once, before any submit.

        Call `context.set_capacity` before returning: until then one task at a time is submitted. A start that blocks
        belongs into `await context.in_thread(engine.start)`, which an interrupted start does not leave behind. What it
        starts, `context.guard` ends when the program is killed.

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
        list is refused. An exception that is none of `rhapsody.errors` is a fault of the backend, and reported as such.
        """

    @hookspec(firstresult=True)
    def rhapsody_batch(self, backlog: Backlog) -> Sequence[ComputeTask] | None:
        """Take the next batch off the backlog: the tasks that the engine will run as one. Optional.

        Called whenever tasks wait and there is room, and again for the next, so that each decision uses what was
        just learned. The default groups tasks by what they proved to take (`rhapsody.scheduling.batching`); a task with
        `resources` or `backend_options` it makes a batch of its own, for the engine gives those to the whole batch.

        Returns: what `backlog.take` gave, at least one task. None leaves this batch to the default.
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

        For engines whose own stream of events is an asynchronous iterator. Core drains `context.events` in any case,
        into which any thread may put; what a monitor yields is added to it. The iterator ends after the backend was
        shut down; one that ends or raises before that has lost the backend, and the traceback goes to the log.
        """

    @hookspec(firstresult=True)
    def rhapsody_cancel(  # type: ignore[empty-body]  # a specification
        self, tasks: Sequence[ComputeTask]
    ) -> Awaitable[Mapping[str, CancelResult]] | Mapping[str, CancelResult]:
        """Stop tasks that the engine holds. Optional; without it, what the engine holds cannot be stopped.

        Returns: for each uid what became of the task. For NEVER_STARTED and STOPPED the backend also reports
        Outcome(state=CANCELED), before or soon after it returns. A uid that is missing means CANNOT_STOP: the task
        keeps its real end. For one that had ended, or whose report is on its way, say TOO_LATE.
        Raises: nothing was stopped.
        """

    @hookspec(firstresult=True)
    def rhapsody_withdraw(self, tasks: Sequence[ComputeTask]) -> Awaitable[None] | None:
        """Give back tasks that have not begun. Optional; without it, they wait for what is before them in their batch.

        Called with the tasks of a batch that wait behind one which takes long, while slots have nothing to run or the
        batch takes many times what it should.

        Returns: those that had not begun never will here, and were or soon are reported as Returned; the others run.
        Raises: nothing was given back.
        """

    @hookspec(firstresult=True)
    def rhapsody_explain(self, task: ComputeTask) -> str | None:
        """Say what a task waits for at the engine. Optional; must not block.

        Returns: what follows "task UID waits", such as "for the cluster to grow: no worker has 8 threads"; None where
        nothing is known of it.
        Raises: nothing.
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
    def rhapsody_session_opened(self, session: ObservedSession) -> None:
        """Learn that a session started its backends."""

    @hookspec(firstresult=True)
    def rhapsody_tasks_submitted(
        self, session: ObservedSession, tasks: Sequence[ComputeTask]
    ) -> Mapping[str, Outcome] | None:
        """Answer for tasks before they are accepted, on a session that has started.

        Returns: by uid, how tasks end that need not run; the others run.
        Raises: RhapsodyError refuses the whole list; anything else is logged, and harms nobody.
        """

    @hookspec
    def rhapsody_tasks_changed(self, session: ObservedSession, transitions: Sequence[Transition]) -> None:
        """Receive changes of state, in order, many at a time; a task's own fields are already up to date."""

    @hookspec
    def rhapsody_batch_submitted(self, session: ObservedSession, backend: str, batch: TaskBatch) -> None:
        """Learn that a batch goes to a backend's engine; each attempt of a task is in one."""

    @hookspec
    def rhapsody_session_closed(self, session: ObservedSession) -> None:
        """Learn that every task of the session has ended and its backends are shut down."""
