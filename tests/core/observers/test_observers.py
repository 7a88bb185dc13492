"""Observers of a session."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from rhapsody.api import ComputeTask, InvalidBackendError, Session
from rhapsody.plugin import Transition, hookimpl

from tests.core.sessions.squares import tasks_of


class _Watcher:
    def __init__(self) -> None:
        self.seen: dict[str, list[str]] = {}
        self.calls: list[str] = []

    @hookimpl
    def rhapsody_session_opened(self, session: Session) -> None:
        self.calls.append(f"opened {session.uid}")

    @hookimpl
    def rhapsody_tasks_changed(self, transitions: Any) -> None:
        for change in transitions:
            self.seen.setdefault(change.task.uid, [change.old.value]).append(change.new.value)

    @hookimpl
    def rhapsody_session_closed(self) -> None:
        self.calls.append("closed")


async def test_observer_sees_changes_in_order() -> None:
    """An observer sees every change once and in order."""
    watcher = _Watcher()
    session = Session(uid="watched")
    session.observe(watcher)
    async with session:
        tasks = [*tasks_of(20), ComputeTask(executable="true")]
        await session.submit_tasks(tasks)
        await session.wait_tasks()
    assert watcher.calls == ["opened watched", "closed"]
    assert [watcher.seen[task.uid] for task in tasks] == [["NEW", "QUEUED", "RUNNING", "DONE"]] * 21


async def test_raising_observer_is_harmless(caplog: pytest.LogCaptureFixture) -> None:
    """An observer that raises harms nobody, and is one warning for each of its hooks."""

    class Broken:
        @hookimpl
        def rhapsody_tasks_changed(self) -> None:
            raise RuntimeError("observer")

    session = Session()
    session.observe(Broken())
    async with session:
        (future,) = await session.submit_tasks(tasks_of(1))
        assert (await future).return_value == 0
    assert [record.levelname for record in caplog.records if "observer_failed" in record.getMessage()] == ["WARNING"]


async def test_observer_sees_the_backend() -> None:
    """A task that names no backend has the name of the one that took it, from its first transition on."""
    names: list[str | None] = []

    class Backends:
        @hookimpl
        def rhapsody_tasks_changed(self, transitions: Sequence[Transition]) -> None:
            names.extend(change.task.backend for change in transitions if change.new == "QUEUED")

    async with Session() as session:
        session.observe(Backends())
        await session.submit_tasks(tasks_of(2))
    assert names == ["concurrent"] * 2


def test_unknown_observer_hook_is_refused() -> None:
    """An observer with an unknown hook is refused."""

    class Typo:
        @hookimpl
        def rhapsody_task_changed(self) -> None: ...

    with pytest.raises(InvalidBackendError, match="rhapsody_task_changed"):
        Session().observe(Typo())


class _Transitions:
    def __init__(self) -> None:
        self.seen: list[Transition] = []

    @hookimpl
    def rhapsody_tasks_changed(self, transitions: Sequence[Transition]) -> None:
        self.seen.extend(transitions)


async def test_transitions_carry_times() -> None:
    """QUEUED carries the time of the submit, RUNNING and the final state the task's own times."""
    observer = _Transitions()
    async with Session() as session:
        session.observe(observer)
        (task,) = await asyncio.gather(*await session.submit_tasks([ComputeTask(function=pow, args=(2, 3))]))
    assert [(change.task, change.new.value, change.at) for change in observer.seen] == [
        (task, "QUEUED", task.submitted_at),
        (task, "RUNNING", task.started_at),
        (task, "DONE", task.ended_at),
    ]
