"""One session of a backend under test, from its start to its end."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from rhapsody.backends.base import ExecutionBackend
from rhapsody.errors import SubmitError
from rhapsody.model.task import ComputeTask
from rhapsody.scheduling.runner import Phase
from rhapsody.seam.context import BackendContext
from rhapsody.sessions.session import Session
from rhapsody.testing.ledger import ConformanceError, Ledger, Spy
from rhapsody.testing.watch import Leftovers

__tracebackhide__ = True  # frames of the suite


@attrs.define(eq=False)
class Life:
    """One session with one backend, from its start to its end.

    Attributes:
        session: the session.
        backend: the backend that it drives.
        spy: sees what passes through the hooks.
        before: what there was before it started.
        start_error: why it did not start.
        close_error: why it did not close cleanly.
        close_seconds: how long `close` took.
        start_seconds: how long `start` took.
        may_be_lost: whether the test is about the loss of the backend.
    """

    session: Session
    backend: ExecutionBackend
    spy: Spy
    before: Leftovers | None = None
    start_error: BaseException | None = None
    close_error: BaseException | None = None
    close_seconds: float = 0.0
    is_open: bool = False
    start_seconds: float = 0.0
    may_be_lost: bool = False

    @property
    def context(self) -> BackendContext:
        """What core gave to `rhapsody_init`."""
        assert self.spy.context is not None, "the session was started"
        return self.spy.context

    @property
    def ledger(self) -> Ledger:
        """What the backend was handed, and what it reported."""
        return self.spy.ledger

    @property
    def slots(self) -> int:
        """How many tasks run at once, by what the backend said."""
        return self.context.capacity.slots

    @property
    def loss(self) -> Exception | None:
        """Why the backend was lost; None as long as it is there."""
        runner = self.session._runners[self.backend.name]
        return runner.error if runner.phase is Phase.LOST else None

    def check_backend(self, tasks: Sequence[ComputeTask]) -> None:
        """Say it where tasks failed because the backend raised or was lost: their results are nobody else's.

        Raises:
            ConformanceError: it did.
        """
        for task in tasks:
            if isinstance(task.exception, SubmitError):
                raise ConformanceError(
                    f"rhapsody_submit did not take a batch, and its tasks failed: {task.exception}; raise in it only "
                    f"where the engine is unable to take anything"
                ) from task.exception.__cause__
        if self.loss is not None and not self.may_be_lost:
            raise ConformanceError(f"the backend was lost while tasks ran, and they failed: {self.loss}") from self.loss
