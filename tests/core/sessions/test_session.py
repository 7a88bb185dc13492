"""How a session gets its backends, its folder and its loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import (
    BackendNotFoundError,
    ComputeTask,
    DuplicateBackendError,
    InvalidBackendError,
    Session,
    SessionError,
    SettingsError,
    TaskState,
)
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.plugin import hookimpl

from tests.core.puppet import Puppet, held
from tests.core.sessions.squares import square, tasks_of


async def test_default_backend_is_local() -> None:
    """A session without backends uses the local one."""
    async with Session() as session:
        assert session.backends == ("concurrent",)
        (future,) = await session.submit_tasks(tasks_of(1))
        assert (await future).return_value == 0


async def test_environment_names_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default backend can be named in the environment."""
    monkeypatch.setenv("RHAPSODY_BACKEND", "cocurrent")
    with pytest.raises(BackendNotFoundError, match="did you mean concurrent"):
        Session()


async def test_backends_by_instance_or_name() -> None:
    """Backends are instances, names or a mapping."""
    awaited = await ConcurrentExecutionBackend(name="a")
    choices: list[Any] = [
        [awaited, "concurrent"],
        {"a": "concurrent", "b": ConcurrentExecutionBackend()},
        "concurrent",
        ConcurrentExecutionBackend(name="a", executor=ThreadPoolExecutor(max_workers=2)),
    ]
    for backends in choices:
        async with Session(backends=backends) as session:
            tasks = [ComputeTask(function=square, args=(3,), backend=name) for name in session.backends]
            await session.submit_tasks(tasks)
            assert [(await task).return_value for task in tasks] == [9] * len(tasks)


def test_namesake_backends_are_refused() -> None:
    """Two backends of one name are refused."""
    with pytest.raises(DuplicateBackendError, match=r"'concurrent'.*name="):
        Session(backends=["concurrent", ConcurrentExecutionBackend()])


@pytest.mark.parametrize("given", [[], ()])
def test_empty_backends_are_refused(given: Any) -> None:
    """An empty list of backends is refused."""
    with pytest.raises(SessionError, match="at least one backend"):
        Session(backends=given)


def test_backend_class_is_refused() -> None:
    """A class instead of an instance is refused with a hint."""
    with pytest.raises(InvalidBackendError, match=r"did you mean ConcurrentExecutionBackend\(\)"):
        Session(backends=[ConcurrentExecutionBackend])  # type: ignore[list-item]


async def test_backend_joins_one_session_at_once() -> None:
    """A backend in use cannot join a second session until the first is closed."""
    backend = ConcurrentExecutionBackend()
    async with Session(backends=[backend], uid="first"):
        second = Session(backends=[backend])
        with pytest.raises(InvalidBackendError, match="belongs to session first"):
            await second.start()
    async with Session(backends=[backend]) as third:
        (future,) = await third.submit_tasks(tasks_of(1))
        await future


async def test_refused_session_frees_backends() -> None:
    """A session that cannot have a backend leaves it to its owner and the others free."""
    backend, other = ConcurrentExecutionBackend(), ConcurrentExecutionBackend(name="other")
    async with Session(backends=[backend], uid="same"):
        with pytest.raises(InvalidBackendError, match="belongs to session same"):
            await Session(backends=[other, backend], uid="same").start()
        assert (backend.is_attached, other.is_attached) == (True, False)


async def test_concurrent_sessions_are_separate() -> None:
    """Two sessions at once do not disturb each other."""
    async with Session() as one, Session() as two:
        first, second = tasks_of(200, uid=None), tasks_of(200)
        await asyncio.gather(one.submit_tasks(first), two.submit_tasks(second))
        await asyncio.gather(one.wait_tasks(first), two.wait_tasks(second))
        assert [task.return_value for task in first] == [task.return_value for task in second]
        assert one.uid != two.uid


async def test_session_without_with_block() -> None:
    """A session works without a with block."""
    session = Session()
    tasks = tasks_of(10)
    await session.submit_tasks(tasks)
    await session.close()
    assert all(task.state is TaskState.DONE for task in tasks)
    await session.close()


def test_session_belongs_to_one_loop() -> None:
    """A session belongs to one loop."""
    session = Session()
    with asyncio.Runner() as own, asyncio.Runner() as other:
        own.run(session.start())
        with pytest.raises(SessionError, match="another event loop"):
            other.run(session.submit_tasks(tasks_of(1)))
        own.run(session.close())


async def test_sandbox_is_made_on_demand(work_dir: Path) -> None:
    """The sandbox is made with the first file and not before."""
    async with Session(uid="here") as session:
        await session.submit_tasks([*tasks_of(3), ComputeTask(executable="echo", arguments=["x"])])
        await session.wait_tasks()
        assert list(work_dir.iterdir()) == []
        task = ComputeTask(executable="echo", arguments=["to a file"], capture_stdio=True, uid="a/b")
        await session.submit_tasks([task])
        await task
        assert task.stdout is None
        assert task.stdout_path is not None
        assert Path(task.stdout_path).parent == session.sandbox == work_dir / "here"
        assert Path(task.stdout_path).read_text() == "to a file\n"


def test_work_dir_precedence(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """work_dir is the argument, the environment's or the current directory."""
    assert Session().work_dir == work_dir
    monkeypatch.setenv("RHAPSODY_WORK_DIR", str(work_dir / "env"))
    assert Session().work_dir == work_dir / "env"
    assert Session(work_dir="arg").work_dir == work_dir / "arg"


@pytest.mark.parametrize("uid", ["", "a/b", "..", 3])
def test_session_uid_must_name_a_folder(uid: Any) -> None:
    """A uid that cannot name a folder is refused."""
    with pytest.raises(SessionError, match="names a folder"):
        Session(uid=uid)


def test_unknown_log_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown log level is refused with the known ones."""
    monkeypatch.setenv("RHAPSODY_LOG_LEVEL", "LOUD")
    with pytest.raises(SettingsError, match=r"'LOUD'.*DEBUG, INFO, WARNING, ERROR, CRITICAL"):
        Session()


async def test_backend_explains_what_waits_with_it() -> None:
    """What a backend knows of a task that it holds is said; where it fails or knows nothing, core answers."""
    answers: dict[str, Any] = {}

    class Explains(Puppet):
        @hookimpl
        def rhapsody_explain(self, task: ComputeTask) -> str | None:
            answer: str | None = answers[task.uid]()
            return answer

    backend = Explains()
    async with Session([backend]) as session:
        grows, silent, fails = tasks = tasks_of(3)
        answers.update({grows.uid: lambda: "for a node", silent.uid: lambda: None, fails.uid: lambda: 1 / 0})
        await session.submit_tasks(tasks)
        await held(backend, 3)
        assert session.explain(grows) == f"task {grows.uid} waits for a node"
        for task in (silent, fails):
            assert "was handed to backend 'puppet', which has not reported its start" in session.explain(task)
        backend.finish(*tasks)
