"""The part of the suite about tasks that are tried again: the same uid goes down once more."""

from __future__ import annotations

from pathlib import Path

from rhapsody.model.retry import Retry
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.testing import tasks
from rhapsody.testing._base import SuitePart, conforms
from rhapsody.testing.assertions import check, must_be
from rhapsody.testing.rig import Rig

_ATTEMPTS = 3


class AttemptTests(SuitePart):
    """What holds for every backend when a task has retries."""

    @conforms("runs a task again", needs="functions")
    async def test_failed_function_runs_again(self, rig: Rig) -> None:
        """Each attempt runs, and the last one's result is the task's."""
        book = rig.new_folder() / "book"
        task = ComputeTask(function=tasks.fail_at_first, args=(str(book), _ATTEMPTS), retries=Retry(_ATTEMPTS))
        await self._is_run_again(rig, task, book)
        check(task.return_value == _ATTEMPTS, f"the third attempt returned 3, and the task has {task.return_value!r}")

    @conforms("runs a task again", needs="executables")
    async def test_failed_executable_runs_again(self, rig: Rig) -> None:
        """Each attempt runs, and the output is the last one's."""
        book = rig.new_folder() / "book"
        script = f'echo ran >> "$1"; n=$(wc -l < "$1"); echo attempt $n; [ "$n" -ge {_ATTEMPTS} ]'
        task = ComputeTask(executable="/bin/sh", arguments=["-c", script, "sh", str(book)], retries=Retry(_ATTEMPTS))
        await self._is_run_again(rig, task, book)
        check(
            (task.stdout or "").split() == ["attempt", str(_ATTEMPTS)],
            f"the third attempt wrote 'attempt 3', and task.stdout is {task.stdout!r}",
        )

    async def _is_run_again(self, rig: Rig, task: ComputeTask, book: Path) -> None:
        await rig.finish([task])
        ran = len(book.read_text().splitlines()) if book.exists() else 0
        check(
            ran == _ATTEMPTS,
            f"a task that fails twice, with two retries, ran {ran} times; a batch may hold a uid that an earlier batch "
            f"held, once that one's Outcome was reported: what the engine is given must not be named by it alone",
        )
        must_be(task, TaskState.DONE, "a task whose third attempt succeeds")
        made = len(task.attempts)
        check(made == _ATTEMPTS == task.attempt, f"three attempts ran, and the task knows of {made} ({task.attempt})")
