"""The state machine: pure, and the only judge of a change of state."""

from __future__ import annotations

import itertools

import pytest
from rhapsody.model.states import FINAL_STATES, TaskState, advance


@pytest.mark.parametrize("old", FINAL_STATES)
@pytest.mark.parametrize("new", list(TaskState))
def test_final_state_is_never_left(old: TaskState, new: TaskState) -> None:
    """A final state is never left."""
    assert advance(old, new) is old


def test_task_runs_from_new_to_done() -> None:
    """A task runs from NEW to DONE."""
    state = TaskState.NEW
    for new in (TaskState.QUEUED, TaskState.RUNNING, TaskState.DONE):
        state = advance(state, new)
        assert state is new


@pytest.mark.parametrize("new", FINAL_STATES)
def test_queued_task_may_end_unstarted(new: TaskState) -> None:
    """A queued task may end without a reported start."""
    assert advance(TaskState.QUEUED, new) is new


def test_no_order_ends_a_task_twice() -> None:
    """No order of reports ends a task twice."""
    for reports in itertools.product(TaskState, repeat=4):
        state, ends = TaskState.QUEUED, 0
        for new in reports:
            following = advance(state, new)
            ends += following is not state and following in FINAL_STATES
            state = following
        assert ends <= 1


def test_state_equals_its_name() -> None:
    """A state compares equal to its name."""
    assert TaskState.DONE == "DONE"
    assert f"{TaskState.DONE}" == "DONE"
    assert TaskState.DONE.is_final
    assert not TaskState.RUNNING.is_final
