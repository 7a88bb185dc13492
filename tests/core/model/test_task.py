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
        ({"function": print, "cwd": "/", "shell": True}, "has a function and shell"),
        ({"function": print, "stdout": Path("out")}, "has a function and stdout"),
        ({"executable": "true", "stdout": "out"}, "a pathlib.Path"),
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
def test_senseless_task_is_refused(description: dict[str, Any], complaint: str) -> None:
    """A description that makes no sense is refused where it is written."""
    with pytest.raises(InvalidTaskError, match=complaint):
        ComputeTask(**description)


def test_unknown_field_is_refused() -> None:
    """An unknown field is refused with the known ones."""
    with pytest.raises(InvalidTaskError, match=r"unknown fields 'exectuable'.*executable"):
        ComputeTask.from_dict({"exectuable": "/bin/true"})


@pytest.mark.parametrize("field", ["ranks", "cores_per_rank", "memory"])
def test_resources_must_be_positive(field: str) -> None:
    """Resources must be positive."""
    with pytest.raises(ValueError, match=field):
        Resources(**{field: 0})


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"ranks": "2"}, "ranks must be a whole number from 1, not '2'"),
        ({"cores_per_rank": True}, "cores_per_rank must be a whole number from 1, not True"),
        ({"gpus_per_rank": -1}, "gpus_per_rank must be a number from 0, not -1"),
        ({"gpus_per_rank": 1.5}, "a fraction below 1 for a share of one GPU"),
        ({"gpus_per_rank": float("nan")}, "gpus_per_rank must be a number"),
        ({"memory": "4 parsecs"}, "memory must be bytes, or text such as '4 GiB'"),
        ({"nodes": 2}, "nodes=2 needs as many ranks"),
        ({"exclusive": 1}, "exclusive must be True or False"),
    ],
)
def test_senseless_resources_are_refused(fields: dict[str, Any], complaint: str) -> None:
    """A value that makes no sense is refused where it is written, by its name."""
    with pytest.raises(InvalidTaskError, match=complaint):
        Resources(**fields)


def test_resources_take_text_and_numpy() -> None:
    """Memory may be text with a unit, and numbers may be numpy's."""
    numpy = pytest.importorskip("numpy")
    wanted = Resources(ranks=numpy.int64(2), gpus_per_rank=numpy.float32(0.5), memory="1.5 GiB")
    assert wanted == Resources(ranks=2, gpus_per_rank=0.5, memory=3 * 2**29)
    assert type(wanted.ranks) is int
    assert [Resources(memory=text).memory for text in ("4 kB", "4KiB", "1 tb")] == [4000, 4096, 10**12]
    assert (wanted.cores, wanted.gpus) == (2, 1.0)


def test_uids_are_counted_and_different() -> None:
    """Uids are counted and different."""
    uids = {ComputeTask(function=print).uid for _ in range(100)}
    assert len(uids) == 100
    assert all(uid.startswith("task.") for uid in uids)


def test_task_reads_like_a_mapping() -> None:
    """A task reads like a mapping of its fields."""
    task = ComputeTask(executable=Path("/bin/true"), uid="a")
    assert task["uid"] == "a"
    assert task["state"] == "NEW"
    assert task.get("stdout") is None
    assert task.get("stdout", "") == ""
    assert task.get("nonsense", 3) == 3
    for name in ("nonsense", "_settler"):
        with pytest.raises(KeyError):
            task[name]


async def test_awaiting_unsubmitted_task_raises() -> None:
    """Waiting for a task that was never submitted is an error that says so."""
    with pytest.raises(SessionError, match="was not submitted"):
        await ComputeTask(function=print)


def test_result_before_the_end_raises() -> None:
    """The result of a task that has not ended is an error that says so."""
    with pytest.raises(SessionError, match="has not ended"):
        ComputeTask(function=print).result()


async def test_failed_task_can_be_pickled() -> None:
    """A task that failed can be pickled and copied."""
    async with Session() as session:
        task = ComputeTask(function=int, args=("no number",))
        await session.submit_tasks([task])
        await session.wait_tasks()
    for other in (pickle.loads(pickle.dumps(task)), copy.copy(task)):
        assert (other.uid, other.state, other.args) == (task.uid, "FAILED", ("no number",))
        with pytest.raises(ValueError, match="no number"):
            other.result()


async def test_several_may_await_one_task() -> None:
    """Several may await one task, and one may give up."""
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
