"""Tasks: described once, refused where they are written, read like objects and like mappings."""

from __future__ import annotations

import asyncio
import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import ComputeTask, InvalidTaskError, Resources, Session, SessionError


@pytest.mark.parametrize(
    ("description", "complaint"),
    [
        ({}, "neither a function nor an executable"),
        ({"function": print, "executable": "/bin/true"}, "both a function and an executable"),
        ({"function": "print"}, "function must be callable"),
        ({"function": print, "arguments": ["x"]}, "takes args and kwargs"),
        ({"function": print, "stdin": "x"}, "has a function and stdin"),
        ({"function": print, "cwd": "/", "shell": True}, "has a function and cwd, shell"),
        ({"function": print, "environment": {"A": "1"}}, "has a function and environment"),
        ({"function": print, "capture_stdio": True}, "has a function and capture_stdio"),
        ({"executable": "/bin/true", "args": (1,)}, "takes arguments"),
        ({"executable": ""}, "executable must not be empty"),
        ({"executable": 3}, "executable must be str or Path"),
        ({"executable": "/bin/true", "arguments": "-x"}, "arguments must be a list or tuple"),
        ({"function": print, "args": 3}, "args must be a list or tuple"),
        ({"function": print, "kwargs": [1]}, "kwargs must be Mapping"),
        ({"function": print, "uid": ""}, "uid must not be empty"),
        ({"function": print, "uid": 7}, "uid must be str"),
        ({"executable": "/bin/true", "environment": {"A": 1}}, "environment must map text to text"),
        ({"executable": "/bin/true", "cwd": 1}, "cwd must be str or Path"),
        ({"executable": "/bin/true", "shell": "yes"}, "shell must be bool"),
        ({"executable": "/bin/true", "resources": {"ranks": 2}}, "resources must be Resources"),
        ({"function": print, "resources": {"ranks": 2}}, "resources must be Resources"),
        ({"function": print, "backend": ["x"]}, "backend must be str"),
        ({"function": print, "backend_options": [1]}, "backend_options must be Mapping"),
        ({"function": print, "shell": ""}, "shell must be bool"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused_where_it_is_written(
    description: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InvalidTaskError, match=complaint):
        ComputeTask(**description)


def test_an_unknown_field_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidTaskError, match=r"unknown fields 'exectuable'.*executable"):
        ComputeTask.from_dict({"exectuable": "/bin/true"})


@pytest.mark.parametrize("field", ["ranks", "cores_per_rank", "memory"])
def test_resources_must_be_positive(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Resources(**{field: 0})


def test_uids_are_counted_and_different() -> None:
    uids = {ComputeTask(function=print).uid for _ in range(100)}
    assert len(uids) == 100
    assert all(uid.startswith("task.") for uid in uids)


def test_a_task_reads_like_a_mapping_of_its_fields() -> None:
    task = ComputeTask(executable=Path("/bin/true"), uid="a")
    assert task["uid"] == "a"
    assert task["state"] == "NEW"
    assert task.get("stdout") is None
    assert task.get("stdout", "") == ""
    assert task.get("nonsense", 3) == 3
    for name in ("nonsense", "_future"):
        with pytest.raises(KeyError):
            task[name]


async def test_waiting_for_a_task_that_was_never_submitted_says_so() -> None:
    with pytest.raises(SessionError, match="was not submitted"):
        await ComputeTask(function=print)


def test_the_result_of_a_task_that_has_not_ended_says_so() -> None:
    with pytest.raises(SessionError, match="has not ended"):
        ComputeTask(function=print).result()


async def test_a_task_that_failed_can_be_pickled_and_copied() -> None:
    async with Session() as session:
        task = ComputeTask(function=int, args=("no number",))
        await session.submit_tasks([task])
        await session.wait_tasks()
    for other in (pickle.loads(pickle.dumps(task)), copy.copy(task)):
        assert (other.uid, other.state, other.args) == (task.uid, "FAILED", ("no number",))
        with pytest.raises(ValueError, match="no number"):
            other.result()


async def test_several_may_await_one_task_and_one_may_give_up() -> None:
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    def work() -> int:
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result()
        return 7

    async with Session() as session:
        task = ComputeTask(function=work)
        (future,) = await session.submit_tasks([task])
        first, second = asyncio.ensure_future(_value(task)), asyncio.ensure_future(_value(task))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(future, 0.05)  # cancels the future, and nothing else
        first.cancel()
        release.set()
        assert await second == 7
        assert (await task).return_value == 7
        assert future.cancelled()


async def _value(task: ComputeTask) -> Any:
    return (await task).return_value
