"""The part of the suite about what a function task asks for of its worker: a seed, a folder, variables."""

from __future__ import annotations

import random
from pathlib import Path

from rhapsody.errors import UnsupportedError
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.testing import tasks
from rhapsody.testing._base import SuitePart, conforms
from rhapsody.testing.assertions import check, must_be
from rhapsody.testing.ledger import ConformanceError
from rhapsody.testing.rig import Rig
from rhapsody.worker.seeding import seeded

_NAMES = ("RHAPSODY_SET_FOR_ONE_TASK", "HOME")


class SurroundingsTests(SuitePart):
    """What a function task asks for holds while it runs, and for no other task."""

    @conforms("functions", needs="functions")
    async def test_a_task_s_seed_gives_its_numbers(self, rig: Rig) -> None:
        """A task with a seed draws from stream 0 of that seed, on any backend."""
        seeds: list[int | tuple[int, int]] = [3, (3, 1), 4]
        batch = [ComputeTask(function=random.random, seed=seed) for seed in (*seeds, *seeds)]
        await rig.finish(batch)
        found = [task.return_value for task in batch]
        wanted = [seeded(random.random, seed, 0)() for seed in seeds]
        check(found == wanted * 2, f"tasks with the seeds {seeds} drew {found}, and not {wanted}, twice; {_ADVICE}")

    @conforms("functions", needs="functions remote")
    async def test_a_function_runs_where_it_asks_to(self, rig: Rig) -> None:
        """`cwd` and `environment` hold for the function, and not for the next task."""
        folder = rig.new_folder()
        asking = ComputeTask(
            function=tasks.surroundings, args=(_NAMES,), cwd=folder, environment={_NAMES[0]: "yes", _NAMES[1]: None}
        )
        others = [ComputeTask(function=tasks.surroundings, args=(_NAMES,)) for _ in range(8)]
        await rig.finish([asking, *others])
        for task in (asking, *others):
            must_be(task, TaskState.DONE, "a function that returns its folder and variables")
        where, found = asking.return_value
        check(Path(where).samefile(folder), f"a function with cwd={str(folder)!r} ran in {where!r}; {_ADVICE}")
        check(found == ["yes", None], f"a function's environment set and removed variables: {found}; {_ADVICE}")
        for task in others:
            where, found = task.return_value
            check(Path(where) != folder, f"the cwd of one task was that of another; {_ADVICE}")
            check(found[0] is None, f"a variable of one task was that of another; {_ADVICE}")

    @conforms("functions", needs="functions")
    async def test_context_variables_end_with_task(self, rig: Rig) -> None:
        """What a task sets in a context variable, no other sees."""
        batch = [ComputeTask(function=tasks.set_variable, args=(f"{number}",)) for number in range(24)]
        await rig.finish(batch)
        found = {task.return_value for task in batch}
        check(found == {""}, f"a context variable that one task sets is seen by the next: {found}; {_ADVICE}")

    @conforms("functions", needs="functions remote")
    async def test_what_a_function_leaves_is_undone(self, rig: Rig) -> None:
        """A folder and a variable that a function changes are as before for the next task of the worker."""
        left = [str(rig.new_folder()) for _ in range(4)]
        leave = [ComputeTask(function=tasks.leave_behind, args=(folder, _NAMES[0])) for folder in left]
        observe = [ComputeTask(function=tasks.surroundings, args=(_NAMES,)) for _ in range(8)]
        await rig.finish([*leave, *observe])
        for task in observe:
            folder, values = task.return_value
            found_there = f"after a function's chdir and os.environ a task is in {folder!r} with {values}"
            check(Path(folder).resolve() not in [Path(other).resolve() for other in left], f"{found_there}; {_ISOLATE}")
            check(values[0] is None, f"{found_there}; {_ISOLATE}")

    @conforms("functions", needs="functions")
    async def test_prints_are_kept_with_their_task(self, rig: Rig) -> None:
        """With `capture_stdio` what a function prints is in `stdout` and `stderr` of its task, and of no other."""
        asking = [ComputeTask(function=tasks.say, args=(f"n {number}",), capture_stdio=True) for number in range(8)]
        other = ComputeTask(function=tasks.same, args=(1,))
        await rig.finish([*asking, other])
        for number, task in enumerate(asking):
            must_be(task, TaskState.DONE, "a function that prints")
            found = (task.stdout, task.stderr)
            wanted = (f"n {number}\n", f"N {number}\n")
            check(found == wanted, f"a function with capture_stdio printed {wanted}, and kept is {found}; {_ADVICE}")
        check(other.stdout is None, f"a function without capture_stdio has the stdout {other.stdout!r}; {_ADVICE}")

    @conforms("functions", needs="functions", lacks="remote")
    async def test_a_folder_of_its_own_is_refused(self, rig: Rig) -> None:
        """UnsupportedError at submit for `cwd` and `environment` where functions share the program's process."""
        for fields in ({"cwd": "/"}, {"environment": {"A": "b"}}):
            try:
                await rig.finish([ComputeTask(function=tasks.same, args=(1,), **fields)])
            except UnsupportedError:
                continue
            raise ConformanceError(f"a function with {fields} was accepted, and shares this process")


_ISOLATE = "call rhapsody.worker.isolate() where a worker process starts"
_ADVICE = "let rhapsody.worker.run_batch run the tasks of TaskBatch.encode"
