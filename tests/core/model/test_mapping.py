"""A task reads and is written as a mapping, and keeps what its caller puts beside its fields."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from rhapsody.api import ComputeTask, InvalidTaskError, Resources, Session


async def test_reads_as_mapping_in_full() -> None:
    """`in`, iteration and `dict(task)` give the public fields, before and after the end."""
    task = ComputeTask("echo", arguments=["hello"], uid="a")
    async with Session() as session:
        await session.submit_tasks([task])
    read = dict(task)
    assert (read["uid"], read["executable"], read["stdout"], read["state"]) == ("a", "echo", "hello\n", "DONE")
    assert list(task) == list(read) == [name for name, _ in task.items()]
    assert len(task) == len(task.values()) == len(read)
    assert "stdout" in task
    assert "nonsense" not in task
    assert not [name for name in task if name.startswith("_") or name == "policies"]
    assert ComputeTask.from_dict({**read, "uid": "b"}).arguments == ["hello"]


def test_fields_change_before_submit() -> None:
    """`task["x"] = ...` changes a field, a policy, or what the task keeps."""
    task = ComputeTask("echo", priority=3)
    task["arguments"], task["cwd"], task["tag"], task["colour"] = ["x"], "/", "mine", "red"
    assert (task.arguments, task.cwd, task.tag, task.priority) == (["x"], "/", "mine", 3)
    assert (task.metadata, task["colour"], dict(task)["colour"]) == ({"colour": "red"}, "red", "red")
    with pytest.raises(InvalidTaskError, match="cwd must be"):
        task["cwd"] = 3
    assert task.cwd == "/"
    task.validate()
    task.arguments = "x"
    with pytest.raises(InvalidTaskError, match="arguments must be"):
        task.validate()


@pytest.mark.parametrize("field", ["state", "return_value", "exit_code", "exception", "session"])
def test_results_are_not_written(field: str) -> None:
    """A result is the session's to write, and not kept aside where nobody reads it."""
    task = ComputeTask("echo")
    before = task[field]
    with pytest.raises(InvalidTaskError, match=f"its {field} is a result"):
        task[field] = "DONE"
    assert (task[field], task.metadata) == (before, {})


async def test_submitted_fields_stay() -> None:
    """A submitted task cannot be changed."""
    async with Session() as session:
        task = ComputeTask(function=int)
        await session.submit_tasks([task])
        with pytest.raises(InvalidTaskError, match="was submitted"):
            task["cwd"] = "/"


def test_other_fields_are_kept() -> None:
    """What is no field is kept in metadata; files are kept; all of it travels with the task."""
    task = ComputeTask(function=int, name="mine", input_files=["a"], output_files=["b"], metadata={"k": 1})  # type: ignore[call-arg]
    assert (task.metadata, task.input_files, task.output_files) == ({"k": 1, "name": "mine"}, ("a",), ("b",))
    assert pickle.loads(pickle.dumps(task)).metadata == task.metadata
    assert ComputeTask(function=int).metadata == {}
    with pytest.raises(InvalidTaskError, match="input_files must be a list"):
        ComputeTask(function=int, input_files="a")


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"env": {"A": "1"}}, "environment", {"A": "1"}),
        ({"ranks": 2, "mem_per_rank": 1}, "resources", Resources(ranks=2, memory=2 * 2**20)),
        ({"task_backend_specific_kwargs": {"pre_exec": ["x"]}}, "backend_options", {"pre_exec": ["x"]}),
        ({"task_backend_specific_kwargs": {"shell": True, "cwd": "/"}}, "executable", "echo a && 'b c'"),
        ({"task_backend_specific_kwargs": {"priority": 2}}, "priority", 2),
    ],
)
def test_options_become_fields(given: dict[str, Any], field: str, value: Any) -> None:
    """Options beside the fields, or in task_backend_specific_kwargs, find their fields."""
    task = ComputeTask("echo", arguments=["a", "&&", "b c"], **given)
    assert task[field] == value


def test_misspelled_fields_are_refused() -> None:
    """What is nearly a field is no metadata."""
    for name in ("arg", "resource", "enviroment"):
        others: Any = {name: 1}
        with pytest.raises(TypeError, match=name):
            ComputeTask(function=int, **others)
