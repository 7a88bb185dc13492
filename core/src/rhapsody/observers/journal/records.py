"""Completes the rows of a group and writes them: the work of the journal's thread."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Final

from rhapsody.model.kinds import FUNCTION
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.observers.journal.notes import Group
from rhapsody.observers.journal.recall import RECALLED
from rhapsody.observers.journal.results import Kept, error_of, pickled, streams_of
from rhapsody.observers.journal.store import Store

_LARGE: Final = 256 * 1024  # bytes of a result that gets a file of its own


def write_group(store: Store, group: Group, numbers: Mapping[str, tuple[int, int]], workers: Mapping[str, int]) -> None:
    """Write a group.

    Args:
        store: the file.
        group: what was noted.
        numbers: of the tasks in it that have not ended, and of their calls.
        workers: their numbers, by name.

    Raises:
        sqlite3.Error, OSError: nothing of it was written.
    """
    tasks = group.rows["tasks"]
    for uid, task in group.queued.items():
        number, call = numbers[uid]
        tasks += (number, uid, call, "QUEUED", task.submitted_at, None, None, None, 0)
    for uid, (task, state, at) in group.states.items():
        number, call = numbers[uid]
        worker, started = None, None
        if state is TaskState.RUNNING:
            worker, started = workers.get(task.ran_on or ""), at
        tasks += (number, uid, call, state.value, task.submitted_at, started, None, worker, task.attempt)
    returned = group.returned
    for index in range(0, len(returned), 2):
        number = returned[index]
        group.rows["results"] += (number, *_placed(store, number, pickled(returned[index + 1])), *[None] * 5)
    for number, task, kept in group.ended:
        _keep(store, group, number, task, kept)
    store.write(group.rows)


def _keep(store: Store, group: Group, number: int, task: ComputeTask, kept: Kept | TracebackType) -> None:
    """Add the rows of what came of a task: its result, the streams of an executable, its error."""
    rows = group.rows["results"]
    if task.exception is not None:
        group.rows["errors"] += (number, *error_of(task, kept))
    if kept == RECALLED:
        rows += (number, None, None, RECALLED, *[None] * 5)
    elif task.kind is FUNCTION:
        if task.exception is None:  # a DONE function without a row returned None
            value = kept if isinstance(kept, bytes | str) else pickled(task.return_value)
            rows += (number, *_placed(store, number, value), *[None] * 5)
    else:
        stdout, stderr, missing = streams_of(task)
        paths = task.stdout_path, task.stderr_path
        rows += (number, None, None, missing, task.exit_code, stdout, stderr, *paths)


def _placed(store: Store, number: int, value: bytes | str) -> tuple[bytes | None, str | None, str | None]:
    """Return a result for the table's columns value, file, missing."""
    if isinstance(value, str):
        return None, None, value
    if len(value) > _LARGE:
        return None, store.write_result(number, value), None
    return value, None, None
