"""What the user's side makes of Batch's words, without Batch."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest
from rhapsody.api import ComputeTask, TaskState
from rhapsody.errors import TaskCanceledError, TaskExecutionError, WorkerLostError
from rhapsody.plugin import BackendContext, TaskBatch
from rhapsody_dragon.batchunit import Run
from rhapsody_dragon.programs import Program

CANCELED, FAILED, DONE = TaskState.CANCELED, TaskState.FAILED, TaskState.DONE


def unit(tmp_path: Any, *, program: bool, timeout: float | None = None) -> Run:
    options = None if timeout is None else {"timeout": timeout}
    task = (
        ComputeTask(executable="true", backend_options=options)
        if program
        else ComputeTask(function=abs, args=(1,), backend_options=options)
    )
    run = Run(TaskBatch(1, [task], cast(BackendContext, None)))
    run.sent_at = time.time() - 1.0
    if program:
        run.program = Program(task, "session", tmp_path)
    return run


@pytest.mark.parametrize(
    ("program", "how", "value", "state", "error"),
    [
        (False, "canceled", None, CANCELED, TaskCanceledError),
        (False, "timeout", None, FAILED, TimeoutError),
        (False, "failed", "it burst", FAILED, WorkerLostError),
        (False, "refused", "too large", FAILED, TaskExecutionError),
        (False, "ended", 0, FAILED, WorkerLostError),  # its frame did not arrive
        (True, "ended", 0, DONE, type(None)),
        (True, "ended", [0, 3, 0], FAILED, TaskExecutionError),
        (True, "failed", "it burst", FAILED, TaskExecutionError),
        (True, "canceled", None, CANCELED, TaskCanceledError),
    ],
)
def test_a_word_of_batch_becomes_an_end(
    tmp_path: Any, program: bool, how: str, value: Any, state: TaskState, error: type
) -> None:
    outcome = unit(tmp_path, program=program, timeout=30.0).outcome(how, value)
    assert outcome.state is state
    assert type(outcome.exception) is error


def test_a_signal_after_the_limit_of_time_was_batchs() -> None:
    late, early = (unit(None, program=False, timeout=limit) for limit in (0.5, 30.0))
    assert isinstance(late.outcome("ended", [-15]).exception, TimeoutError)
    assert isinstance(early.outcome("ended", [-15]).exception, WorkerLostError)


def test_a_program_that_ends_by_itself_while_it_is_canceled_is_canceled(tmp_path: Any) -> None:
    run = unit(tmp_path, program=True)
    run.canceled = True
    assert run.outcome("ended", 0).state is CANCELED


def test_a_word_is_enough_until_a_worker_has_asked(tmp_path: Any) -> None:
    asking, program = unit(tmp_path, program=False), unit(tmp_path, program=True)
    asking.asks = True
    assert asking.can_be_withdrawn
    assert not program.can_be_withdrawn
    asking.begun_at = time.time()
    assert not asking.can_be_withdrawn
    program.recall()
    assert program.can_be_withdrawn
