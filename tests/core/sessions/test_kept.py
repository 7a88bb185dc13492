"""Results that stay where their tasks ran, and what is refused of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import ComputeTask, InvalidTaskError, Retry, TaskState, UnsupportedError
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.plugin import KeptResult

from tests.core.local import local, run


async def test_threads_keep_the_object() -> None:
    """In threads a kept result is the object: children have it, and so has `fetch`."""
    made: list[Any] = []
    first = ComputeTask(function=lambda: made, keep=True)
    child = ComputeTask(function=lambda value: value, args=(first,))
    await run(local("threads"), first, child)
    assert await first.fetch() is child.return_value is first.return_value is made


async def test_fetch_is_for_all_tasks() -> None:
    """`fetch` waits for any task, returns what it returned, and raises why it failed."""
    async with local("processes") as session:
        good, bad = ComputeTask(function=pow, args=(2, 5)), ComputeTask(function=divmod, args=(1, 0))
        await session.submit_tasks([good, bad])
        assert await good.fetch() == 32
        with pytest.raises(ZeroDivisionError):
            await bad.fetch()


async def test_what_cannot_keep_refuses() -> None:
    """A backend without `keep_results` refuses at submit, naming the task."""
    task = ComputeTask(function=pow, args=(2, 5), keep=True, uid="large")
    async with local("processes") as session:
        with pytest.raises(UnsupportedError, match=r"task large: .* cannot keep a result where it is"):
            await session.submit_tasks([task])
    assert task.state is TaskState.NEW


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"executable": "true"}, "keep is for functions"),
        ({"function": pow, "cache": True}, "cache=True"),
        ({"function": pow, "retries": Retry(2, fallback="dask")}, "a fallback"),
        ({"function": pow, "keep": "yes"}, "must be True or False"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], says: str) -> None:
    """keep=True where nothing could be kept, or the result must come home, is an error where it is written."""
    with pytest.raises(InvalidTaskError, match=says):
        ComputeTask(**{"keep": True, **fields})


async def test_threads_hand_over_to_other_backends(tmp_path: Path) -> None:
    """What threads keep is the object, which goes to any backend as other results do."""
    from rhapsody.api import Session

    backends = [
        ConcurrentExecutionBackend(name=kind, executor=kind, max_workers=1) for kind in ("threads", "processes")
    ]
    first = ComputeTask(function=pow, args=(2, 5), keep=True, backend="threads")
    child = ComputeTask(function=pow, args=(first, 2), backend="processes")
    await run(Session(backends=backends, work_dir=tmp_path), first, child)
    assert child.return_value == 1024


def test_kept_result_does_not_travel() -> None:
    """A KeptResult that is pickled by itself says what to give in its place."""
    result = KeptResult("task.1", "dask", None, lambda: pytest.fail("fetched"), (list, ()))
    with pytest.raises(TypeError, match="give the task itself"):
        result.__reduce__()
