"""Tasks that wait for others."""

from __future__ import annotations

import asyncio
import gc
import operator
import pickle
import random
import weakref
from typing import Any

import pytest
from rhapsody.api import (
    CancelResult,
    ComputeTask,
    DependencyError,
    InvalidTaskError,
    Session,
    SessionError,
    TaskCanceledError,
    TaskState,
)
from rhapsody.backends import ConcurrentExecutionBackend

from tests.core.local import KINDS, local, run
from tests.core.puppet import Puppet, held


def add(*numbers: Any) -> Any:
    return sum(numbers)


def total(table: dict[str, list[int]], *, extra: tuple[int, ...] = ()) -> int:
    return sum(sum(row) for row in table.values()) + sum(extra)


def fail() -> None:
    raise ValueError("no convergence")


@pytest.mark.parametrize("executor", KINDS)
async def test_values_travel_to_children(executor: str) -> None:
    """A task in the arguments arrives as what it returned, at any depth, by position and by keyword."""
    one, two = ComputeTask(function=add, args=(1,)), ComputeTask(function=add, args=(2,))
    direct = ComputeTask(function=add, args=(one, 10, two))
    nested = ComputeTask(function=total, args=({"a": [one, 5], "b": [two]},), kwargs={"extra": (direct,)})
    await run(local(executor), nested, two, direct, one)
    assert (direct.return_value, nested.return_value) == (13, 21)


async def test_executables_hand_over_stdout() -> None:
    """A function receives what an executable wrote, and an executable takes a task among its arguments."""
    written = ComputeTask(executable="echo", arguments=["21"])
    doubled = ComputeTask(function=lambda text: int(text) * 2, args=(written,))
    shown = ComputeTask(executable="echo", arguments=["it is", doubled])
    await run(local("threads"), shown, doubled, written)
    assert shown.stdout == "it is 42\n"


async def test_dependencies_cross_backends() -> None:
    """A task on one backend waits for tasks on others."""
    backends = [ConcurrentExecutionBackend(name=kind, executor=kind, max_workers=1) for kind in KINDS]
    first = ComputeTask(function=add, args=(1,), backend="threads")
    second = ComputeTask(function=add, args=(first, 1), backend="processes")
    third = ComputeTask(function=add, args=(second, 1), backend="threads", after=[first])
    await run(Session(backends=backends), third, second, first)
    assert third.return_value == 3


async def test_after_only_orders() -> None:
    """A task starts when those before it are DONE, and is WAITING until then."""
    backend = Puppet()
    async with Session(backends=[backend]) as session:
        first, second = ComputeTask(function=int), ComputeTask(function=int)
        last = ComputeTask(function=int, after=[first, second])
        await session.submit_tasks([last, first, second])
        assert (last.state, last.after) == (TaskState.WAITING, (first, second))
        await held(backend, 2)
        backend.finish(first)
        await session.wait_tasks([first])
        assert last.state is TaskState.WAITING
        assert session.explain(last) == f"task {last.uid} waits for task {second.uid} (QUEUED)"
        backend.finish(second)
        await held(backend, 3)
        assert (last.state, last.after) == (TaskState.QUEUED, ())
        assert session.explain(last) == (
            f"task {last.uid} was handed to backend 'puppet', which has not reported its start"
        )
        backend.finish(last)
        await session.wait_tasks()
    assert session.explain(last) == f"task {last.uid} is DONE"


async def test_parents_that_have_ended() -> None:
    """A task submitted after its parents have ended runs, or fails, at once."""
    async with local("threads") as session:
        good, bad = ComputeTask(function=add, args=(1,)), ComputeTask(function=fail)
        await session.submit_tasks([good, bad])
        await session.wait_tasks()
        child, orphan = ComputeTask(function=add, args=(good, 1)), ComputeTask(function=int, after=[bad])
        cleanup = ComputeTask(function=int, after_any=[bad])
        await session.submit_tasks([child, orphan, cleanup])
        await session.wait_tasks()
        assert (child.return_value, orphan.state, cleanup.state) == (2, TaskState.FAILED, TaskState.DONE)


async def test_failure_names_its_root() -> None:
    """What hangs on a failed task is FAILED with DependencyError, which names the first and carries its exception."""
    root = ComputeTask(function=fail)
    child = ComputeTask(function=add, args=(root,))
    grandchild = ComputeTask(function=int, after=[child])
    cleanup = ComputeTask(function=int, after_any=[grandchild])
    other = ComputeTask(function=int)
    await run(local("threads"), grandchild, cleanup, child, root, other)
    for task in (child, grandchild):
        assert task.state is TaskState.FAILED
        error = task.exception
        assert isinstance(error, DependencyError)
        assert error.root == root.uid
        assert error.__cause__ is root.exception
        assert f"task {task.uid} did not run, since it depends on task {root.uid}" in str(error)
        assert "ValueError: no convergence" in str(error)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        with pytest.raises(DependencyError):
            await task
    assert [cleanup.state, other.state] == [TaskState.DONE] * 2


async def test_canceled_parent_fails_children() -> None:
    """What waits for a canceled task is FAILED, and the cause is the cancel."""
    backend = Puppet()
    backend.units = 0
    async with Session(backends=[backend]) as session:
        parent = ComputeTask(function=int)
        child = ComputeTask(function=int, after=[parent])
        await session.submit_tasks([parent, child])
        assert await session.cancel_tasks([parent]) == {parent.uid: CancelResult.NEVER_STARTED}
        assert child.state is TaskState.FAILED
        assert isinstance(child.exception, DependencyError)
        assert isinstance(child.exception.__cause__, TaskCanceledError)


async def test_cancel_of_all_that_hang_on_a_task() -> None:
    """With `dependents`, what waits for a task is canceled with it; what was named is, whatever its parent did."""
    backend = Puppet()
    backend.units = 0
    async with Session(backends=[backend]) as session:
        parent = ComputeTask(function=int)
        children = [ComputeTask(function=int, after=[parent]) for _ in range(2)]
        grandchild = ComputeTask(function=int, after=children)
        other = ComputeTask(function=int)
        family = [parent, *children, grandchild]
        await session.submit_tasks([*family, other])
        answer = await session.cancel_tasks([parent], dependents=True)
        assert answer == {task.uid: CancelResult.NEVER_STARTED for task in family}
        assert {task.state for task in family} == {TaskState.CANCELED}
        assert other.state is TaskState.QUEUED
        await session.cancel_tasks([other])


async def test_canceled_child_leaves_parent_alone() -> None:
    """A waiting task that is canceled never runs, and its parent is not affected."""
    backend = Puppet()
    async with Session(backends=[backend]) as session:
        parent = ComputeTask(function=int)
        child = ComputeTask(function=int, after=[parent])
        await session.submit_tasks([parent, child])
        assert await session.cancel_tasks([child]) == {child.uid: CancelResult.NEVER_STARTED}
        await held(backend, 1)
        backend.finish(parent)
        await session.wait_tasks()
    assert (parent.state, child.state, backend.tasks) == (TaskState.DONE, TaskState.CANCELED, [parent])


async def test_close_waits_for_the_waiting() -> None:
    """Leaving the session waits for dependent tasks; closing it in a hurry cancels them."""
    async with local("threads") as session:
        first = ComputeTask(function=add, args=(1,))
        last = ComputeTask(function=add, args=(first, 1))
        await session.submit_tasks([last, first])
    assert last.return_value == 2
    backend = Puppet()
    backend.units = 0
    hurried = await Session(backends=[backend]).start()
    first = ComputeTask(function=int)
    last = ComputeTask(function=int, after=[first])
    await hurried.submit_tasks([first, last])
    await hurried.close(wait=False)
    assert {first.state, last.state} == {TaskState.CANCELED}


async def test_lost_backend_fails_what_hangs_on_it() -> None:
    """When an engine is lost, tasks that wait for its tasks on other backends fail too."""
    one, two = Puppet("one"), Puppet("two")
    async with Session(backends=[one, two]) as session:
        parent = ComputeTask(function=int, backend="one")
        child = ComputeTask(function=int, backend="two", after=[parent])
        await session.submit_tasks([parent, child])
        one.lose()
        await session.wait_tasks()
    assert isinstance(child.exception, DependencyError)
    assert child.exception.__cause__ is parent.exception


# -- refusals ----------------------------------------------------------------------------------------------------------


async def test_cycle_is_refused() -> None:
    """Tasks that wait for each other are refused, named in a circle; none of the list is accepted."""
    late: list[ComputeTask] = []
    tasks = [ComputeTask(function=add, args=(late,), uid="a")]
    for uid in "bc":
        tasks.append(ComputeTask(function=add, args=(tasks[-1],), uid=uid))
    late.append(tasks[-1])
    innocent = ComputeTask(function=int)
    async with Session() as session:
        with pytest.raises(InvalidTaskError, match="tasks wait for each other: a for c for b for a"):
            await session.submit_tasks([innocent, *tasks])
        assert {task.state for task in (innocent, *tasks)} == {TaskState.NEW}


async def test_unsubmitted_parent_is_refused() -> None:
    """A parent that was not submitted is named."""
    parent = ComputeTask(function=int, uid="p")
    async with Session() as session:
        with pytest.raises(InvalidTaskError, match="task c waits for task p, which was not submitted"):
            await session.submit_tasks([ComputeTask(function=add, args=([parent],), uid="c")])


async def test_parent_of_another_session_is_refused() -> None:
    """A parent of another session is named, whether it has ended or not."""
    parent = ComputeTask(function=int, uid="p")
    async with Session(uid="one") as one, Session(uid="two") as two:
        await one.submit_tasks([parent])
        for _ in range(2):
            with pytest.raises(InvalidTaskError, match="task p, which is a task of session one, not of two"):
                await two.submit_tasks([ComputeTask(function=int, after_any=[parent])])
            with pytest.raises(SessionError, match="not a task of session two"):
                two.explain(parent)
            await one.wait_tasks()


@pytest.mark.parametrize("parents", [3, [3], ComputeTask(function=int), "ab"])
def test_after_is_a_list_of_tasks(parents: Any) -> None:
    """Anything but a list of tasks is refused where the task is described."""
    with pytest.raises(InvalidTaskError, match=r"after and after_any must be lists of tasks|which is no task"):
        ComputeTask(function=int, after=parents)


async def test_unreplaceable_argument_fails_its_task() -> None:
    """A container that cannot be rebuilt fails its own task, and what waits for it."""
    ring: list[Any] = []
    parent = ComputeTask(function=int)
    ring += [parent, ring]
    child = ComputeTask(function=add, args=(ring,))
    grandchild = ComputeTask(function=int, after=[child])
    await run(local("threads"), parent, child, grandchild)
    assert isinstance(child.exception, InvalidTaskError)
    assert isinstance(grandchild.exception, DependencyError)


# -- many --------------------------------------------------------------------------------------------------------------


async def test_long_chain_runs_in_order() -> None:
    """A chain of thousands, submitted in any order, passes a value from one to the next."""
    chain = [ComputeTask(function=add, args=(0,))]
    while len(chain) < 1500:
        chain.append(ComputeTask(function=add, args=(chain[-1], 1)))
    shuffled = random.Random(1).sample(chain, len(chain))
    await run(local("threads"), *shuffled)
    assert chain[-1].return_value == 1499


async def test_failed_root_ends_a_long_chain() -> None:
    """A chain of thirty thousand fails with its first task, without recursion."""
    chain = [ComputeTask(function=fail)]
    while len(chain) < 30_000:
        chain.append(ComputeTask(function=int, after=[chain[-1]]))
    await run(local("threads"), *chain)
    last = chain[-1].exception
    assert isinstance(last, DependencyError)
    assert last.root == chain[0].uid


async def test_wide_fan_into_one() -> None:
    """One task takes the values of thirty thousand."""
    leaves = [ComputeTask(function=int, args=(1,)) for _ in range(30_000)]
    one = ComputeTask(function=sum, args=(leaves,))
    await run(local("threads"), one, *leaves)
    assert one.return_value == 30_000


async def test_ended_parents_are_released() -> None:
    """A task that has started holds none of those that went before it."""
    async with local("threads") as session:
        last = ComputeTask(function=add, args=(1,))
        first = weakref.ref(last)
        for _ in range(5):
            task = ComputeTask(function=add, args=(last, 1), after=[last], after_any=[])
            await session.submit_tasks([last, task] if last.state is TaskState.NEW else [task])
            await session.wait_tasks()
            last = task
        await asyncio.sleep(0)
        gc.collect()
        assert (first(), last.return_value) == (None, 6)


async def test_stream_takes_dependent_tasks() -> None:
    """A stream submits tasks that wait for those before them."""
    first = ComputeTask(function=operator.add, args=(1, 1))
    second = ComputeTask(function=operator.add, args=(first, 1))
    async with local("threads") as session:
        ended = [task async for task in session.as_completed([first, second])]
        assert ended == [first, second]
        assert [value async for value in session.map(operator.add, [first, second], [1, 1])] == [3, 4]
