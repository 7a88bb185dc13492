"""The state machine: pure, and the only judge of a change of state."""

from __future__ import annotations

import itertools

import pytest
from rhapsody.states import FINAL_STATES, TaskState, advance


@pytest.mark.parametrize("old", FINAL_STATES)
@pytest.mark.parametrize("new", list(TaskState))
def test_a_final_state_is_never_left(old: TaskState, new: TaskState) -> None:
    assert advance(old, new) is old


def test_a_task_runs_from_new_to_done() -> None:
    state = TaskState.NEW
    for new in (TaskState.QUEUED, TaskState.RUNNING, TaskState.DONE):
        state = advance(state, new)
        assert state is new


@pytest.mark.parametrize("new", FINAL_STATES)
def test_a_queued_task_may_end_without_a_reported_start(new: TaskState) -> None:
    assert advance(TaskState.QUEUED, new) is new


def test_no_order_of_reports_ends_a_task_twice() -> None:
    for reports in itertools.product(TaskState, repeat=4):
        state, ends = TaskState.QUEUED, 0
        for new in reports:
            following = advance(state, new)
            ends += following is not state and following in FINAL_STATES
            state = following
        assert ends <= 1


def test_a_state_compares_equal_to_its_name() -> None:
    assert TaskState.DONE == "DONE"
    assert f"{TaskState.DONE}" == "DONE"
    assert TaskState.DONE.is_final
    assert not TaskState.RUNNING.is_final
