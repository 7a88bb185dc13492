"""The part of the suite about large arguments, and values that many tasks are given by one handle."""

from __future__ import annotations

from rhapsody.errors import describe
from rhapsody.model.kept import KeptResult
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.testing import tasks
from rhapsody.testing._base import SuitePart, conforms
from rhapsody.testing.assertions import check, must_be
from rhapsody.testing.refusals import is_refused
from rhapsody.testing.rig import Rig

_SIZE = 2**21  # bytes: so large that few tasks with it share a batch
_TASKS = 12


class SharedDataTests(SuitePart):
    """What holds for values that many tasks are given."""

    @conforms("shared data", needs="functions shared_data")
    async def test_a_large_argument_travels_once(self, rig: Rig) -> None:
        """A large object that many tasks are given is pickled once, whatever batches they are in."""
        value = tasks.Counted(_SIZE)
        batch = [ComputeTask(function=len, args=(value,)) for _ in range(_TASKS)]
        await rig.finish(batch)
        for task in batch:
            must_be(task, TaskState.DONE, "a task with a large argument")
        check(
            value.pickled == 1,
            f"one object that {_TASKS} tasks were given was pickled {value.pickled} times; set context.store in "
            f"rhapsody_init, or declare no shared_data",
        )

    @conforms("shared data", needs="functions remote")
    async def test_large_arguments_are_copies(self, rig: Rig) -> None:
        """What a task writes into a large argument, no other task sees."""
        value = bytearray(_SIZE)
        batch = [ComputeTask(function=tasks.count_up, args=(value,)) for _ in range(_TASKS)]
        await rig.finish(batch)
        found = {task.return_value for task in batch}
        check(found == {1}, f"a task sees what others have written into a large argument: {found}; {_ADVICE}")

    @conforms("functions", needs="functions")
    async def test_handles_arrive_as_values(self, rig: Rig) -> None:
        """What `session.share` returned is replaced by the value, also within containers."""
        life = await rig.shared()
        handle = life.session.share(["shared"])
        batch = [ComputeTask(function=tasks.same, args=(value,)) for value in (handle, {"in": [handle]}) * 3]
        await rig.finish(batch, life)
        for task in batch:
            must_be(task, TaskState.DONE, "a task with a shared value")
        found = [task.return_value for task in batch]
        wanted = [["shared"], {"in": [["shared"]]}] * 3
        check(found == wanted, f"a handle of session.share arrived as {found[:2]}; {_ADVICE}")

    @conforms("functions", needs="functions")
    async def test_kept_results_stay(self, rig: Rig) -> None:
        """With keep=True a result goes to tasks that are given it, and by `fetch`; or that is refused at submit."""
        first = ComputeTask(function=bytearray, args=(_SIZE,), keep=True)
        children = [ComputeTask(function=tasks.count_up, args=(first,)) for _ in range(3)]
        if not rig.capabilities.keep_results:
            await is_refused(rig, first, "keep=True")
            return
        life = await rig.shared()
        await rig.finish([first, *children], life)
        must_be(first, TaskState.DONE, "a task with keep=True")
        remote = rig.capabilities.remote
        check(
            not remote or isinstance(first.return_value, KeptResult),
            f"a task with keep=True returned {describe(first.return_value)}, which is no KeptResult; report one, or "
            f"declare no keep_results",
        )
        for task in children:
            must_be(task, TaskState.DONE, "a task that is given a kept result")
        found = sorted(task.return_value for task in children)
        check(found == ([1, 1, 1] if remote else [1, 2, 3]), f"tasks that each add 1 to a kept result return {found}")
        fetched = await first.fetch()
        check(len(fetched) == _SIZE, f"fetch() brought {describe(fetched)}")


_ADVICE = "let rhapsody.worker.run_batch run the tasks of TaskBatch.encode"
