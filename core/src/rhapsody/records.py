"""Writing what happened to a task into the task: its state, its results, its future."""

from __future__ import annotations

import time
from typing import Final

from .errors import SessionClosedError
from .events import Outcome, Started
from .futures import settle
from .log import get_logger
from .states import TaskState, advance
from .task import ComputeTask

log = get_logger(__name__)
_RUNNING: Final = TaskState.RUNNING


def apply(task: ComputeTask, event: Started | Outcome) -> bool:
    """Apply a report to a task. Returns whether it changed the task's state: one that comes too late does not."""
    old = task.state
    new = event.state if isinstance(event, Outcome) else _RUNNING
    state = advance(old, new)
    if state is old:
        log.debug("report_dropped", task=task.uid, state=old.value, reported=new.value)
        return False
    task.state = state
    if type(event) is Outcome:
        _record(task, event)
        _resolve(task)
    else:
        assert type(event) is Started
        task.started_at = event.at
        task.ran_on = event.ran_on
        task.attempt += 1
    return True


def unended(task: ComputeTask, session: str) -> Outcome:
    """Return the end of a task which cannot be stopped and does not end, when its session does."""
    if task.state is TaskState.RUNNING:
        text = f"task {task.uid} still runs and cannot be stopped; session {session} closed without its end"
    else:
        text = f"task {task.uid} had not ended when session {session} closed"
    return Outcome(task.uid, TaskState.FAILED, exception=SessionClosedError(text))


def _record(task: ComputeTask, outcome: Outcome) -> None:
    """Write how a task ended into it."""
    task.return_value = outcome.return_value
    if outcome.exception is not None:
        task.exception = outcome.exception
        task._traceback = outcome.exception.__traceback__
    task.ended_at = outcome.ended_at or time.time()
    if outcome.started_at is not None:
        task.started_at = outcome.started_at
        task.attempt = outcome.attempt or task.attempt or 1  # its start may not have been reported by itself
    if outcome.ran_on is not None:
        task.ran_on = outcome.ran_on
    if task.function is None:
        task.stdout = outcome.stdout
        task.stderr = outcome.stderr
        task.exit_code = outcome.exit_code
        task.stdout_path = outcome.stdout_path
        task.stderr_path = outcome.stderr_path


def _resolve(task: ComputeTask) -> None:
    """Settle the task's future, if somebody asked for it; the task lets go of it, so that neither keeps the other."""
    future = task._future
    task._future = task._loop = None
    if future is not None and not future.done():  # done: whoever waited on it gave up
        settle(future, task)
