"""Canceling tasks by their tag."""

from __future__ import annotations

import pytest
from rhapsody.api import CancelResult, ComputeTask, InvalidTaskError, Session, SessionError, TaskState

from tests.core.puppet import Puppet


async def test_group_is_canceled_together() -> None:
    """All tasks of a tag that have not ended are canceled, on every backend, and no others."""
    one, two = Puppet("one"), Puppet("two")
    one.units = two.units = 0
    async with Session(backends=[one, two]) as session:
        doomed = [ComputeTask(function=int, tag="doomed", backend=name) for name in ("one", "two", "two")]
        others = [ComputeTask(function=int, tag="other"), ComputeTask(function=int)]
        await session.submit_tasks([*doomed, *others])
        answer = await session.cancel_tasks(group="doomed")
        assert answer == {task.uid: CancelResult.NEVER_STARTED for task in doomed}
        assert {task.state for task in others} == {TaskState.QUEUED}
        assert await session.cancel_tasks(group="doomed") == {}
        await session.cancel_tasks(others)


async def test_cancel_takes_tasks_or_group() -> None:
    """A cancel that names both tasks and a group, or neither, is refused."""
    async with Session() as session:
        with pytest.raises(InvalidTaskError, match="takes a list of tasks"):
            await session.cancel_tasks()
        with pytest.raises(SessionError, match="either tasks or a group"):
            await session.cancel_tasks([], group="x")


@pytest.mark.parametrize("tag", [3, ""])
def test_tag_is_text(tag: object) -> None:
    """A tag that is no text is refused where the task is described."""
    with pytest.raises(InvalidTaskError, match="tag must be text"):
        ComputeTask(function=int, tag=tag)  # type: ignore[arg-type]


def test_unknown_argument_is_a_type_error() -> None:
    """An argument that no task has is refused as Python does."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'prioritty'"):
        ComputeTask(function=int, prioritty=1)  # type: ignore[call-arg]
