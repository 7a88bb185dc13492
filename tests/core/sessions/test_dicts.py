"""Tasks described by dicts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from rhapsody.api import CancelResult, ComputeTask, InvalidTaskError, Session, SessionError


async def test_results_are_written_into_dicts() -> None:
    """A dict is waited for as its task is, and has the results when the wait is over."""
    good: dict[str, Any] = {"function": pow, "args": (2, 5), "uid": "mine"}
    bad: dict[str, Any] = {"executable": "sh", "arguments": ["-c", "echo out; exit 3"]}
    named: list[Any] = [good, bad, ComputeTask(function=int)]
    async with Session() as session:
        await session.submit_tasks(named)
        assert await session.wait_tasks(named) == named
        assert (good["state"], good["return_value"], good["uid"]) == ("DONE", 32, "mine")
        assert (bad["state"], bad["exit_code"], bad["stdout"]) == ("FAILED", 3, "out\n")
        assert bad["uid"].startswith("task.")
        assert await session.wait_tasks([good]) == [good]


async def test_dict_may_be_used_again() -> None:
    """One dict describes as many tasks as it is submitted times."""
    same: dict[str, Any] = {"function": pow, "args": (2, 5)}
    async with Session() as session:
        await session.submit_tasks([same, same])
        await session.wait_tasks()
        uid = same["uid"]
        for _ in range(2):
            await session.submit_tasks([same])
            await session.wait_tasks([same])
        assert same["uid"] != uid


async def test_dicts_are_canceled() -> None:
    """cancel_tasks takes the dict of a task."""
    forever: dict[str, Any] = {"executable": "sleep", "arguments": ["600"], "uid": "forever"}
    async with Session() as session:
        await session.submit_tasks([forever])
        assert await session.cancel_tasks([forever]) in (
            {"forever": CancelResult.STOPPED},
            {"forever": CancelResult.NEVER_STARTED},
        )
        assert forever["state"] == "CANCELED"


async def test_unknown_dict_is_refused() -> None:
    """A dict that was not submitted cannot be waited for, nor can one alone in place of a list."""
    async with Session() as session:
        with pytest.raises(SessionError, match="describes no task"):
            await session.wait_tasks([{"function": int, "uid": "other"}])
        with pytest.raises(InvalidTaskError, match="list of tasks"):
            await asyncio.wait_for(session.wait_tasks({"function": int}), 10)  # type: ignore[type-var]
