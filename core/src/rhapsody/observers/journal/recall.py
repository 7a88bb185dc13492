"""Gives tasks the results that an earlier run of their session has left in the journal."""

from __future__ import annotations

import pickle
from collections import deque
from pathlib import Path
from typing import Final

from rhapsody.errors import TaskInterruptedError
from rhapsody.log import get_logger
from rhapsody.model.outcome import Outcome
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.observers.journal.reader import JournalReader

log = get_logger(__name__)
RECALLED: Final = "recalled from an earlier run"  # in place of the result of a task that did not run

_KNOWN: Final = """
SELECT t.id, t.uid, t.state, c.key FROM tasks t JOIN calls c ON t.call = c.id LEFT JOIN results r ON r.task = t.id
WHERE c.key IS NOT NULL AND ((t.state = 'DONE' AND r.missing IS NULL) OR t.state = 'RUNNING') ORDER BY t.id
"""
_RESULT: Final = "SELECT value, file, exit_code, stdout, stderr, stdout_path, stderr_path FROM results WHERE task = ?"


class Recall:
    """Knows the tasks of earlier runs by their content. Of tasks that are alike, each result is given once, in order.

    Args:
        folder: of the session.
        rerun: run tasks again that ran when an earlier run was killed, also where they are not idempotent.

    Raises:
        JournalError: there is no journal, or it cannot be read.
    """

    def __init__(self, folder: Path, rerun: bool) -> None:
        self._reader = JournalReader(folder)
        self._rerun = rerun
        self._done: dict[str, deque[int]] = {}
        self._interrupted: dict[str, deque[str]] = {}
        for number, uid, state, key in self._reader.query(_KNOWN):
            if state == "DONE":
                self._done.setdefault(key, deque()).append(number)
            else:
                self._interrupted.setdefault(key, deque()).append(uid)

    def outcome_of(self, task: ComputeTask, key: str) -> Outcome | None:
        """Return how a task ends without being run; None where it is to run."""
        done = self._done.get(key)
        while done:
            outcome = self._result(task.uid, done.popleft())
            if outcome is not None:
                return outcome
        interrupted = self._interrupted.get(key)
        if not interrupted or self._rerun or task.idempotent:
            return None
        error = TaskInterruptedError(
            f"task {task.uid} is task {interrupted.popleft()} of an earlier run, which was killed while it ran; "
            f"whether its effects happened is unknown. Mark it idempotent=True, or resume with rerun, to run it again"
        )
        return Outcome(task.uid, TaskState.FAILED, exception=error)

    def close(self) -> None:
        """Close the journal."""
        self._reader.close()

    def _result(self, uid: str, number: int) -> Outcome | None:
        rows = self._reader.query(_RESULT, number)
        if not rows:
            return Outcome(uid, TaskState.DONE)
        value, file, exit_code, stdout, stderr, stdout_path, stderr_path = rows[0]
        try:
            if file is not None:
                value = (self._reader.path.parent / file).read_bytes()
            returned = None if value is None else pickle.loads(value)
        except Exception as error:  # its file was removed, or its class is not there any more
            log.warning("result_not_recalled", task=uid, error=repr(error), consequence="the task runs again")
            return None
        return Outcome(
            uid, TaskState.DONE, return_value=returned, exit_code=exit_code, stdout=stdout, stderr=stderr,
            stdout_path=stdout_path, stderr_path=stderr_path,
        )  # fmt: skip
