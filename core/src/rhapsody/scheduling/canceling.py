"""Stops tasks step by step, and says what became of each; without I/O, as the flow is."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import Final, Protocol

from rhapsody.errors import TaskCanceledError, TaskTimeoutError
from rhapsody.model.outcome import CancelResult, Outcome
from rhapsody.model.states import FINAL_STATES, TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.scheduling.instructions import AskCancel, AwaitEnds, AwaitSubmit, CancelStep, Change, Deliver, TryAgain

_STOPPING: Final = (CancelResult.NEVER_STARTED, CancelResult.STOPPED)
_TOO_LATE: Final = CancelResult.TOO_LATE
_LAST_REPORTS: Final = 1.0  # seconds that the outcome of a task may take which its backend says has ended
CancelSteps = Generator[CancelStep, Mapping[str, CancelResult] | None, dict[str, CancelResult]]
ExpireSteps = Generator[CancelStep, Mapping[str, CancelResult] | None, CancelResult | None]


class Flow(Protocol):
    """What a cancel needs of a `TaskFlow`."""

    expiring: Expiring

    @property
    def can_ask(self) -> bool:
        """Whether the backend can be asked to stop what its engine holds."""

    @property
    def is_submitting(self) -> bool:
        """Whether a submission has not returned: its tasks cannot be stopped until the engine has them."""

    def withdraw(self, tasks: Iterable[ComputeTask]) -> list[Change]:
        """Cancel those tasks that wait; the backlog passes over them when their turn comes."""

    def give_up(self, tasks: Iterable[ComputeTask]) -> None:
        """Run these tasks of the engine's no more: those that come back are canceled, those that fail not retried."""


class Expiring:
    """The attempts that are being stopped at their timeout.

    A backend is asked to stop a task by its uid, which the next attempt has too: that one must not begin before the
    backend has answered, or it could be stopped in place of one that has ended by itself.
    """

    def __init__(self) -> None:
        self._held: dict[str, TryAgain | None] = {}  # by uid; the next attempt, once there is to be one

    def begin(self, task: ComputeTask) -> None:
        """The backend is asked to stop the attempt that runs."""
        self._held.setdefault(task.uid)

    def hold(self, again: TryAgain) -> bool:
        """Hold the next attempt of a task back, where the backend has not answered. Returns whether that is so."""
        if again.task.uid not in self._held:
            return False
        self._held[again.task.uid] = again
        return True

    def end(self, task: ComputeTask) -> TryAgain | None:
        """The backend has answered. Returns the attempt that was held back."""
        return self._held.pop(task.uid, None)

    def drain(self) -> list[ComputeTask]:
        """The backend is gone. Returns the tasks whose next attempt was held back."""
        tasks = [again.task for again in self._held.values() if again is not None]
        self._held.clear()
        return tasks


def cancel_steps(flow: Flow, tasks: Iterable[ComputeTask]) -> CancelSteps:
    """Stop tasks.

    Yields:
        One step after the other; other events may come in between. What `rhapsody_cancel` answers is sent.

    Returns:
        By uid what became of each task.
    """
    named = dict.fromkeys(tasks)  # each once, also where a caller named it twice
    results = {task.uid: _TOO_LATE for task in named if task.state in FINAL_STATES}
    left = [task for task in named if task.uid not in results]
    if waiting := flow.withdraw(left):
        yield Deliver(waiting)
    held = [task for task in left if not task.is_final]
    flow.give_up(held)  # at once, until they end: what comes back from now on is not run again
    if held and flow.is_submitting:
        yield AwaitSubmit()
    answer: Mapping[str, CancelResult] = {}
    asked = [task for task in held if not task.is_final]
    if asked and flow.can_ask:
        answer = (yield AskCancel(asked)) or {}
        ending = [task.uid for task in asked if answer.get(task.uid) in _STOPPING and not task.is_final]
        if ending:
            yield AwaitEnds(ending)
        ended = [task.uid for task in asked if answer.get(task.uid) is _TOO_LATE and not task.is_final]
        if ended:  # by what the backend says; the report is on its way
            yield AwaitEnds(ended, _LAST_REPORTS)
    return results | {task.uid: cancel_result_of(task, answer.get(task.uid)) for task in left}


def expire_steps(flow: Flow, task: ComputeTask) -> ExpireSteps:
    """Stop the attempt of a task that has run for its timeout; another may follow, so nothing waits for its end.

    Yields:
        As `cancel_steps` does.

    Returns:
        What the backend said; None where it was not asked, since the attempt has ended, or did not say.
    """
    if flow.is_submitting:
        yield AwaitSubmit()
    assert task.policies is not None  # since it has a timeout
    if task.policies.expired is None or not flow.can_ask:
        return None
    flow.expiring.begin(task)
    answer = (yield AskCancel([task])) or {}
    again = flow.expiring.end(task)
    if again is not None:  # canceled in the meantime, it is not tried again
        yield Deliver([(task, again.outcome)]) if task.policies.is_unwanted else again
    return answer.get(task.uid)


def settle_expired(task: ComputeTask, outcome: Outcome) -> None:
    """Make the end of a task that was stopped for a limit of time FAILED; one that came before it stays."""
    policies = task.policies
    if policies is None or policies.expired is None:
        return
    limit, policies.expired = policies.expired, None
    if outcome.state is TaskState.CANCELED:
        seconds = policies.timeout if limit == "timeout" else policies.deadline
        assert seconds is not None  # it has expired
        outcome.state = TaskState.FAILED
        outcome.exception = TaskTimeoutError(task.uid, limit, seconds, outcome.stdout, outcome.stderr)


def stopped_outcome(task: ComputeTask) -> Outcome:
    """Return the end of a task that was stopped before the engine began it."""
    outcome = Outcome(task.uid, TaskState.CANCELED, exception=canceled_error(task))
    settle_expired(task, outcome)
    return outcome


def canceled_error(task: ComputeTask) -> TaskCanceledError:
    """Return why a canceled task has no result."""
    return TaskCanceledError(f"task {task.uid} was canceled")


def cancel_result_of(task: ComputeTask, answer: CancelResult | None = None) -> CancelResult:
    """Say what became of a task, by what the backend said and by what it is now."""
    if task.state is TaskState.CANCELED:
        never = answer is not CancelResult.STOPPED and task.started_at is None
        return CancelResult.NEVER_STARTED if never else CancelResult.STOPPED
    return CancelResult.TOO_LATE if task.is_final or answer is CancelResult.TOO_LATE else CancelResult.CANNOT_STOP
