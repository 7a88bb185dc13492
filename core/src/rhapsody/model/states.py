"""The states of a task and the one function that decides a change of state.

    NEW -> WAITING -> QUEUED -> RUNNING -> DONE | FAILED | CANCELED
              ^---------+----------'  another attempt, where the task has retries

A task that waits neither for another nor for its next attempt is never WAITING. A task may go from QUEUED to any final
state: an engine that runs thousands of short tasks a second need not report the start of each. A final state is never
left.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class TaskState(StrEnum):
    """Where a task is in its life; compares equal to its own name (`task.state == "DONE"`).

    Attributes:
        followers: the states that may come next.
    """

    followers: tuple[TaskState, ...]

    NEW = "NEW"
    WAITING = "WAITING"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELED = "CANCELED"

    @property
    def is_final(self) -> bool:
        """Whether a task in this state has ended."""
        return self in FINAL_STATES


FINAL_STATES: Final = (TaskState.DONE, TaskState.FAILED, TaskState.CANCELED)

# Kept at the state itself, since it is asked at every change: a dict would call Enum's hash, written in Python.
TaskState.NEW.followers = (TaskState.QUEUED, TaskState.WAITING)

TaskState.WAITING.followers = (TaskState.QUEUED, TaskState.FAILED, TaskState.CANCELED)

TaskState.QUEUED.followers = (TaskState.RUNNING, TaskState.WAITING, *FINAL_STATES)

TaskState.RUNNING.followers = (TaskState.WAITING, *FINAL_STATES)

for _final in FINAL_STATES:
    _final.followers = ()


def advance(old: TaskState, new: TaskState) -> TaskState:
    """Return the state that follows when a task in `old` is reported as `new`.

    That is `new` where the change is allowed, and `old` where it is not: a late or repeated report changes nothing.
    """
    return new if new in old.followers else old
