"""An attempt that is stopped at its timeout, and may end by itself meanwhile."""

from __future__ import annotations

import pytest
from rhapsody.api import CancelResult, ComputeTask, TaskState
from rhapsody.plugin import Outcome, Started
from rhapsody.scheduling.canceling import expire_steps
from rhapsody.scheduling.instructions import AskCancel, Dropped, TryAgain

from .test_taskflow import flow, record, submit


@pytest.mark.parametrize("own_end", [TaskState.DONE, TaskState.FAILED])
@pytest.mark.parametrize("retries", [0, 2])
def test_own_end_wins_over_a_timeout(own_end: TaskState, retries: int) -> None:
    """An attempt that ends by itself while it is being stopped has its own end; the stop hits no later attempt."""
    one = flow()
    task = ComputeTask(function=int, timeout=1.0, retries=retries)
    task.state = TaskState.QUEUED
    assert task.policies is not None
    submit(one, one.accept([task]), 1)
    one.submitted()
    record(one.apply([Started(task.uid, 0.0)], 0.0)[0])
    task.policies.expired = "timeout"
    steps = expire_steps(one, task)
    assert isinstance(next(steps), AskCancel)
    ended = one.apply(
        [Outcome(task.uid, own_end, exception=LookupError() if own_end is TaskState.FAILED else None)], 2.0
    )
    if own_end is TaskState.DONE or not retries:
        record(*ended)
        assert task.state is own_end
        with pytest.raises(StopIteration):
            steps.send({task.uid: CancelResult.STOPPED})
    else:
        assert ended == []  # the next attempt waits for the answer
        again = steps.send({task.uid: CancelResult.TOO_LATE})
        assert isinstance(again, TryAgain)
        assert isinstance(again.outcome.exception, LookupError)
        with pytest.raises(StopIteration):
            next(steps)
    (dropped,) = one.apply([Outcome(task.uid, TaskState.CANCELED)], 2.0)
    assert isinstance(dropped, Dropped)
    assert task.policies.expired is None
