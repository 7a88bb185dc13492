"""Tasks that were described by dicts: a dict stands for its task, and the results are written into it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from rhapsody.errors import SessionError
from rhapsody.model.outcome import Outcome
from rhapsody.model.states import FINAL_STATES
from rhapsody.model.task import ComputeTask
from rhapsody.scheduling.instructions import Change

_WRITTEN: Final = ("uid", "state", "return_value", "stdout", "stderr", "exit_code", "exception")


class TaskDicts:
    """The dicts of one session whose tasks have not ended."""

    def __init__(self) -> None:
        self._of: dict[ComputeTask, dict[str, Any]] = {}

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._of)

    def add(self, dicts: dict[ComputeTask, dict[str, Any]]) -> None:
        """Take the dicts that describe accepted tasks."""
        self._of.update(dicts)

    def write(self, changes: Sequence[Change]) -> None:
        """Write how tasks ended into their dicts."""
        for task, event in changes:
            if type(event) is Outcome and task.is_final and (described := self._of.pop(task, None)) is not None:
                described.update({field: task[field] for field in _WRITTEN})

    def tasks(self, named: Iterable[object], session: str) -> list[object]:
        """Return what a user names, with tasks in place of dicts; without those that have ended.

        Raises:
            SessionError: a dict that describes no task of the session.
        """
        items = list(named)
        if not any(isinstance(item, dict) for item in items):
            return items
        by_identity = {id(described): task for task, described in self._of.items()}
        tasks: list[object] = []
        for item in items:
            if not isinstance(item, dict):
                tasks.append(item)
            elif id(item) in by_identity:
                tasks.append(by_identity[id(item)])
            elif item.get("state") not in FINAL_STATES:
                raise SessionError(f"the dict {item.get('uid', '(no uid)')!r} describes no task of session {session}")
        return tasks
