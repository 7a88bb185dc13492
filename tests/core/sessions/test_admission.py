"""Which tasks a session accepts, and which lists it refuses."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from rhapsody.api import (
    BackendNotFoundError,
    ComputeTask,
    DuplicateTaskError,
    InvalidTaskError,
    Resources,
    Session,
    SessionClosedError,
    TaskState,
    UnsupportedError,
)
from rhapsody.plugin import BackendCapabilities

from tests.core.puppet import Puppet
from tests.core.sessions.squares import square, tasks_of


async def test_futures_keep_the_tasks_order() -> None:
    """Futures come in the order of the tasks."""
    async with Session() as session:
        tasks = tasks_of(100)
        futures = await session.submit_tasks(tasks)
        assert [await future for future in futures] == tasks


async def test_mapping_of_fields_is_a_task() -> None:
    """A mapping of fields is a task."""
    async with Session() as session:
        (future,) = await session.submit_tasks([{"function": square, "args": [4], "uid": "four"}])
        task = await future
        assert (task.uid, task["return_value"]) == ("four", 16)


async def test_empty_list_is_accepted() -> None:
    """An empty list is accepted."""
    async with Session() as session:
        assert list(await session.submit_tasks([])) == []
        assert await session.wait_tasks([]) == []


async def test_concurrent_first_submits() -> None:
    """Several callers may submit at once to a session that is not started."""
    session = Session()
    groups = [tasks_of(50) for _ in range(10)]
    await asyncio.gather(*(session.submit_tasks(group) for group in groups))
    await session.close()
    assert all(task.state is TaskState.DONE for group in groups for task in group)


async def test_duplicate_uid_refuses_the_list() -> None:
    """A duplicate uid refuses the whole list."""
    async with Session() as session:
        await session.submit_tasks([ComputeTask(function=square, args=(1,), uid="a")])
        await session.wait_tasks()
        good = ComputeTask(function=square, args=(1,))
        for bad in (ComputeTask(function=square, uid="a"), good):
            with pytest.raises(DuplicateTaskError):
                await session.submit_tasks([good, bad])
            assert good.state is TaskState.NEW
        await session.submit_tasks([good])
        assert (await good).return_value == 1


async def test_task_is_submitted_once() -> None:
    """A task object is submitted once."""
    async with Session() as session:
        (task,) = tasks_of(1)
        await session.submit_tasks([task])
        with pytest.raises(DuplicateTaskError, match="submitted before"):
            await session.submit_tasks([task])
    async with Session() as other:
        with pytest.raises(DuplicateTaskError, match="submitted before"):
            await other.submit_tasks([task])


async def test_unknown_backend_refuses_the_list() -> None:
    """An unknown backend in the middle refuses the whole list."""
    async with Session() as session:
        tasks = tasks_of(3)
        tasks[1].backend = "dusk"
        with pytest.raises(BackendNotFoundError, match=r"'dusk'.*has concurrent"):
            await session.submit_tasks(tasks)
        assert [task.state for task in tasks] == [TaskState.NEW] * 3
        tasks[1].backend = None
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)


@pytest.mark.parametrize("bad", [3, "task", None, object()])
async def test_non_tasks_are_refused(bad: Any) -> None:
    """What is no task is refused."""
    async with Session() as session:
        with pytest.raises(InvalidTaskError, match="takes"):
            await session.submit_tasks([ComputeTask(function=square), bad])


@pytest.mark.parametrize("method", ["submit_tasks", "wait_tasks", "cancel_tasks"])
@pytest.mark.parametrize("given", [ComputeTask(function=square), {"function": square}, "task.1", 7])
async def test_non_lists_are_refused(method: str, given: Any) -> None:
    """What is no list of tasks is refused with a hint."""
    async with Session() as session:
        with pytest.raises(InvalidTaskError, match=f"{method} takes a list of tasks, not"):
            await getattr(session, method)(given)


@pytest.mark.parametrize("method", ["submit_tasks", "cancel_tasks"])
async def test_none_is_refused(method: str) -> None:
    """None instead of a list of tasks is refused."""
    async with Session() as session:
        with pytest.raises(InvalidTaskError, match=f"{method} takes a list of tasks, not None"):
            await getattr(session, method)(None)


@pytest.mark.parametrize("method", ["wait_tasks", "cancel_tasks"])
async def test_futures_as_tasks_are_refused(method: str) -> None:
    """Futures in place of tasks are refused and harm nobody."""
    async with Session() as session:
        tasks = tasks_of(2)
        futures = await session.submit_tasks(tasks)
        with pytest.raises(InvalidTaskError, match=f"{method} takes the tasks that were submitted, not <Future"):
            await getattr(session, method)(futures)
        await session.wait_tasks(tasks)
        assert [future.result() for future in futures] == tasks


async def test_streams_refuse_non_tasks() -> None:
    """What is no task is refused by a stream."""
    async with Session() as session:
        with pytest.raises(InvalidTaskError, match="as_completed takes tasks and mappings, not 3"):
            _ = [task async for task in session.as_completed([3])]  # type: ignore[list-item]
        with pytest.raises(InvalidTaskError, match="as_completed takes a list of tasks, not 3"):
            session.as_completed(3)  # type: ignore[arg-type]


async def test_closed_session_takes_nothing() -> None:
    """A closed session takes nothing."""
    session = Session()
    await session.close()
    with pytest.raises(SessionClosedError, match="closed"):
        await session.submit_tasks(tasks_of(1))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"resources": Resources(ranks=2)}, "2 ranks"),
        ({"resources": Resources(cores_per_rank=2)}, "2 cores"),
        ({"resources": Resources(exclusive=True)}, "nodes of its own"),
        ({"resources": Resources(gpus_per_rank=1)}, "1 GPUs"),
        ({"resources": Resources(memory=1)}, "memory"),
        ({"backend_options": {"priority": 3}}, "'priority'"),
    ],
)
async def test_unsupported_tasks_are_refused(fields: dict[str, Any], complaint: str) -> None:
    """What a backend does not declare is refused before anything runs."""
    backend = Puppet("modest")
    backend.capabilities = BackendCapabilities()
    async with Session(backends=[backend]) as session:
        task = ComputeTask(function=square, args=(1,), **fields)
        with pytest.raises(UnsupportedError, match=rf"{task.uid}: backend 'modest'.*{complaint}"):
            await session.submit_tasks([task])
        assert task.state is TaskState.NEW
