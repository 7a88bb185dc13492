"""What a `TaskFlow` wants done; carried out in order, before the next event is reported to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import attrs

from rhapsody.model.outcome import Outcome, Started
from rhapsody.model.task import ComputeTask
from rhapsody.scheduling.backlog import Backlog

_NO_GPUS: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType({})
Change = tuple[ComputeTask, Started | Outcome]


@attrs.define(eq=False)
class HeldBatch:
    """A batch that the engine holds, and what is accounted of it.

    Attributes:
        uid: counts the batches of one backend, from 1.
        tasks: in the order in which they run.
        submitted_at: when it was chosen, by the clock of the runner.
        learns: whether the default batching made it, and learns from it.
        spare: whether every slot was taken when it was chosen.
        left: tasks in it that have not ended.
        work: seconds that its tasks took, so far.
        gpus: the numbers of the GPUs of its tasks, by uid, where core packs them.
    """

    uid: int
    tasks: Sequence[ComputeTask]
    submitted_at: float
    learns: bool
    spare: bool
    left: int
    work: float = 0.0
    gpus: Mapping[str, tuple[int, ...]] = _NO_GPUS

    def __len__(self) -> int:
        """Return the number of tasks."""
        return len(self.tasks)


@attrs.define(eq=False)
class Choose:
    """Call `rhapsody_batch`, and report its answer with `TaskFlow.chosen`."""

    backlog: Backlog


@attrs.define(eq=False)
class Submit:
    """Call `rhapsody_submit`, and report `TaskFlow.submitted` or `TaskFlow.refused`."""

    batch: HeldBatch


@attrs.define(eq=False)
class Deliver:
    """Record what happened to tasks, in order."""

    changes: Sequence[Change]


@attrs.define(eq=False)
class TryAgain:
    """Record that an attempt of a task failed, and hand the task to a backend once more.

    Attributes:
        task: whose end is not to be recorded.
        outcome: of the attempt.
        backend: the name of the backend for the next one.
        delay: seconds until then.
    """

    task: ComputeTask
    outcome: Outcome
    backend: str
    delay: float


@attrs.define(eq=False)
class Lost:
    """The backend is given up: accept nothing more for it."""

    error: Exception


@attrs.define(eq=False)
class Dropped:
    """Log that reports were dropped: their tasks are not held, or had been reported before."""

    count: int


@attrs.define(eq=False)
class AskBack:
    """Call `rhapsody_withdraw`, where the backend has it, so that an urgent task need not wait for these."""

    tasks: Sequence[ComputeTask]


@attrs.define(eq=False)
class AwaitSubmit:
    """Wait until the submission that is under way has returned: its tasks can be stopped once the engine has them."""


@attrs.define(eq=False)
class AskCancel:
    """Call `rhapsody_cancel`, and send its answer; None where it failed."""

    tasks: Sequence[ComputeTask]


@attrs.define(eq=False)
class AwaitEnds:
    """Wait until the ends of these tasks are recorded.

    Attributes:
        uids: the tasks.
        seconds: how long at most; None as long as the deadline of the cancel allows.
    """

    uids: Sequence[str]
    seconds: float | None = None


Instruction = Choose | Submit | Deliver | TryAgain | Lost | Dropped | AskBack
CancelStep = Deliver | TryAgain | AwaitSubmit | AskCancel | AwaitEnds
