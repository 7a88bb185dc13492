"""Sessions: how backends are given, tasks accepted or refused, and ends awaited."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import (
    BackendNotFoundError,
    ComputeTask,
    DuplicateBackendError,
    DuplicateTaskError,
    InvalidBackendError,
    InvalidTaskError,
    Resources,
    Session,
    SessionClosedError,
    SessionError,
    SettingsError,
    TaskExecutionError,
    TaskState,
    UnsupportedError,
)
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.plugin import hookimpl


def square(x: int) -> int:
    return x * x


def tasks_of(count: int, **fields: Any) -> list[ComputeTask]:
    return [ComputeTask(function=square, args=(i,), **fields) for i in range(count)]


# -- how backends are given ------------------------------------------------------------------------------------------


async def test_a_session_without_backends_uses_the_local_one() -> None:
    async with Session() as session:
        assert session.backends == ("concurrent",)
        (future,) = await session.submit_tasks(tasks_of(1))
        assert (await future).return_value == 0


async def test_the_default_backend_can_be_named_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHAPSODY_BACKEND", "cocurrent")
    with pytest.raises(BackendNotFoundError, match="did you mean concurrent"):
        Session()


async def test_backends_are_instances_names_or_a_mapping() -> None:
    awaited = await ConcurrentExecutionBackend(name="a")
    for backends in (
        [awaited, "concurrent"],
        {"a": "concurrent", "b": ConcurrentExecutionBackend()},
        "concurrent",
        ConcurrentExecutionBackend(name="a", executor=ThreadPoolExecutor(max_workers=2)),
    ):
        async with Session(backends=backends) as session:
            tasks = [ComputeTask(function=square, args=(3,), backend=name) for name in session.backends]
            await session.submit_tasks(tasks)
            assert [(await task).return_value for task in tasks] == [9] * len(tasks)


def test_two_backends_of_one_name_are_refused() -> None:
    with pytest.raises(DuplicateBackendError, match=r"'concurrent'.*name="):
        Session(backends=["concurrent", ConcurrentExecutionBackend()])


@pytest.mark.parametrize("given", [[], ()])
def test_no_backends_at_all_are_refused(given: Any) -> None:
    with pytest.raises(SessionError, match="at least one backend"):
        Session(backends=given)


def test_a_class_instead_of_an_instance_is_refused_with_a_hint() -> None:
    with pytest.raises(InvalidBackendError, match=r"did you mean ConcurrentExecutionBackend\(\)"):
        Session(backends=[ConcurrentExecutionBackend])  # type: ignore[list-item]


async def test_a_backend_in_use_cannot_join_a_second_session_until_the_first_is_closed() -> None:
    backend = ConcurrentExecutionBackend()
    async with Session(backends=[backend], uid="first"):
        second = Session(backends=[backend])
        with pytest.raises(InvalidBackendError, match="belongs to session first"):
            await second.start()
    async with Session(backends=[backend]) as third:
        (future,) = await third.submit_tasks(tasks_of(1))
        await future


async def test_a_session_that_cannot_have_a_backend_leaves_it_to_its_owner_and_the_others_free() -> None:
    backend, other = ConcurrentExecutionBackend(), ConcurrentExecutionBackend(name="other")
    async with Session(backends=[backend], uid="same"):
        with pytest.raises(InvalidBackendError, match="belongs to session same"):
            await Session(backends=[other, backend], uid="same").start()
        assert (backend.is_attached, other.is_attached) == (True, False)


async def test_two_sessions_at_once_do_not_disturb_each_other() -> None:
    async with Session() as one, Session() as two:
        first, second = tasks_of(200, uid=None), tasks_of(200)
        await asyncio.gather(one.submit_tasks(first), two.submit_tasks(second))
        await asyncio.gather(one.wait_tasks(first), two.wait_tasks(second))
        assert [task.return_value for task in first] == [task.return_value for task in second]
        assert one.uid != two.uid


# -- accepting and refusing ------------------------------------------------------------------------------------------


async def test_futures_come_in_the_order_of_the_tasks() -> None:
    async with Session() as session:
        tasks = tasks_of(100)
        futures = await session.submit_tasks(tasks)
        assert [await future for future in futures] == tasks


async def test_a_mapping_of_fields_is_a_task() -> None:
    async with Session() as session:
        (future,) = await session.submit_tasks([{"function": square, "args": [4], "uid": "four"}])
        task = await future
        assert (task.uid, task["return_value"]) == ("four", 16)


async def test_an_empty_list_is_accepted() -> None:
    async with Session() as session:
        assert list(await session.submit_tasks([])) == []
        assert await session.wait_tasks([]) == []


async def test_a_session_works_without_a_with_block() -> None:
    session = Session()
    tasks = tasks_of(10)
    await session.submit_tasks(tasks)
    await session.close()
    assert all(task.state is TaskState.DONE for task in tasks)
    await session.close()


async def test_several_may_submit_at_once_to_a_session_that_is_not_started() -> None:
    session = Session()
    groups = [tasks_of(50) for _ in range(10)]
    await asyncio.gather(*(session.submit_tasks(group) for group in groups))
    await session.close()
    assert all(task.state is TaskState.DONE for group in groups for task in group)


async def test_a_duplicate_uid_refuses_the_whole_list() -> None:
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


async def test_a_task_object_is_submitted_once() -> None:
    async with Session() as session:
        (task,) = tasks_of(1)
        await session.submit_tasks([task])
        with pytest.raises(DuplicateTaskError, match="submitted before"):
            await session.submit_tasks([task])
    async with Session() as other:
        with pytest.raises(DuplicateTaskError, match="submitted before"):
            await other.submit_tasks([task])


async def test_an_unknown_backend_in_the_middle_refuses_the_whole_list() -> None:
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
async def test_what_is_no_task_is_refused(bad: Any) -> None:
    async with Session() as session:
        with pytest.raises(InvalidTaskError, match="takes"):
            await session.submit_tasks([ComputeTask(function=square), bad])


@pytest.mark.parametrize("method", ["submit_tasks", "wait_tasks", "cancel_tasks"])
@pytest.mark.parametrize("given", [ComputeTask(function=square), {"function": square}, "task.1", 7])
async def test_what_is_no_list_of_tasks_is_refused_with_a_hint(method: str, given: Any) -> None:
    async with Session() as session:
        with pytest.raises(InvalidTaskError, match=f"{method} takes a list of tasks, not"):
            await getattr(session, method)(given)


@pytest.mark.parametrize("method", ["submit_tasks", "cancel_tasks"])
async def test_nothing_instead_of_a_list_of_tasks_is_refused(method: str) -> None:
    async with Session() as session:
        with pytest.raises(InvalidTaskError, match=f"{method} takes a list of tasks, not None"):
            await getattr(session, method)(None)


@pytest.mark.parametrize("method", ["wait_tasks", "cancel_tasks"])
async def test_futures_where_tasks_belong_are_refused_and_harm_nobody(method: str) -> None:
    async with Session() as session:
        tasks = tasks_of(2)
        futures = await session.submit_tasks(tasks)
        with pytest.raises(InvalidTaskError, match=f"{method} takes the tasks that were submitted, not <Future"):
            await getattr(session, method)(futures)
        await session.wait_tasks(tasks)
        assert [future.result() for future in futures] == tasks


async def test_what_is_no_task_is_refused_by_a_stream() -> None:
    async with Session() as session:
        with pytest.raises(InvalidTaskError, match="as_completed takes tasks and mappings, not 3"):
            _ = [task async for task in session.as_completed([3])]  # type: ignore[list-item]
        with pytest.raises(InvalidTaskError, match="as_completed takes a list of tasks, not 3"):
            session.as_completed(3)  # type: ignore[arg-type]


async def test_a_closed_session_takes_nothing() -> None:
    session = Session()
    await session.close()
    with pytest.raises(SessionClosedError, match="closed"):
        await session.submit_tasks(tasks_of(1))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"resources": Resources(ranks=2)}, "2 ranks"),
        ({"resources": Resources(gpus_per_rank=1)}, "1 GPUs"),
        ({"resources": Resources(memory=1)}, "memory"),
        ({"backend_options": {"priority": 3}}, "'priority'"),
    ],
)
async def test_what_a_backend_cannot_honour_is_refused_before_anything_runs(
    fields: dict[str, Any], complaint: str
) -> None:
    async with Session() as session:
        task = ComputeTask(function=square, args=(1,), **fields)
        with pytest.raises(UnsupportedError, match=rf"{task.uid}: backend 'concurrent'.*{complaint}"):
            await session.submit_tasks([task])
        assert task.state is TaskState.NEW


def test_a_session_belongs_to_one_loop() -> None:
    session = Session()
    with asyncio.Runner() as own, asyncio.Runner() as other:
        own.run(session.start())
        with pytest.raises(SessionError, match="another event loop"):
            other.run(session.submit_tasks(tasks_of(1)))
        own.run(session.close())


# -- waiting ---------------------------------------------------------------------------------------------------------


async def test_waiting_never_raises_for_failures_and_nobody_complains_of_unseen_exceptions(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> None:
        raise ValueError("on purpose")

    async with Session() as session:
        tasks = [ComputeTask(function=fail), ComputeTask(executable="false"), *tasks_of(2)]
        await session.submit_tasks(tasks)
        assert await session.wait_tasks(tasks) == tasks
        with pytest.raises(ValueError, match="on purpose"):
            await tasks[0]
        with pytest.raises(TaskExecutionError, match="exit code 1"):
            await tasks[1]
    gc.collect()
    assert not caplog.records


async def test_a_timeout_says_how_many_are_left_and_leaves_them_running() -> None:
    release = threading.Event()
    async with Session() as session:
        tasks = [ComputeTask(function=release.wait, args=(30,)), *tasks_of(1)]
        await session.submit_tasks(tasks)
        with pytest.raises(TimeoutError, match=r"1 of 2 tasks have not ended within 0\.2"):
            await session.wait_tasks(tasks, timeout=0.2)
        assert tasks[0].state is TaskState.RUNNING
        release.set()
        await session.wait_tasks(tasks)
        assert tasks[0].return_value is True


async def test_waiting_for_somebody_elses_task_is_an_error() -> None:
    async with Session() as one, Session() as two:
        task = ComputeTask(function=time.sleep, args=(0.2,))
        await one.submit_tasks([task])
        with pytest.raises(SessionError, match="is not a task of session"):
            await two.wait_tasks([task])
        with pytest.raises(SessionError, match="was not submitted"):
            await two.wait_tasks(tasks_of(1))


# -- what is left ----------------------------------------------------------------------------------------------------


async def test_nothing_holds_a_task_that_has_ended_and_that_the_user_has_dropped() -> None:
    async with Session() as session:
        tasks = tasks_of(10)
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)
        references = [weakref.ref(task) for task in tasks]
        del tasks
        gc.collect()
        assert [reference() for reference in references] == [None] * 10


async def test_the_sandbox_is_made_with_the_first_file_and_not_before(work_dir: Path) -> None:
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


def test_work_dir_is_the_argument_or_the_environment_or_the_current_directory(
    work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Session().work_dir == work_dir
    monkeypatch.setenv("RHAPSODY_WORK_DIR", str(work_dir / "env"))
    assert Session().work_dir == work_dir / "env"
    assert Session(work_dir="arg").work_dir == work_dir / "arg"


@pytest.mark.parametrize("uid", ["", "a/b", "..", 3])
def test_a_uid_that_cannot_name_a_folder_is_refused(uid: Any) -> None:
    with pytest.raises(SessionError, match="names a folder"):
        Session(uid=uid)


def test_an_unknown_log_level_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHAPSODY_LOG_LEVEL", "LOUD")
    with pytest.raises(SettingsError, match=r"'LOUD'.*DEBUG, INFO, WARNING, ERROR, CRITICAL"):
        Session()


# -- observers -------------------------------------------------------------------------------------------------------


class _Watcher:
    def __init__(self) -> None:
        self.seen: dict[str, list[str]] = {}
        self.calls: list[str] = []

    @hookimpl
    def rhapsody_session_opened(self, session: Session) -> None:
        self.calls.append(f"opened {session.uid}")

    @hookimpl
    def rhapsody_tasks_changed(self, transitions: Any) -> None:
        for task, old, new in transitions:
            self.seen.setdefault(task.uid, [old.value]).append(new.value)

    @hookimpl
    def rhapsody_session_closed(self) -> None:
        self.calls.append("closed")


async def test_an_observer_sees_every_change_once_and_in_order() -> None:
    watcher = _Watcher()
    session = Session(uid="watched")
    session.observe(watcher)
    async with session:
        tasks = [*tasks_of(20), ComputeTask(executable="true")]
        await session.submit_tasks(tasks)
        await session.wait_tasks()
    assert watcher.calls == ["opened watched", "closed"]
    assert [watcher.seen[task.uid] for task in tasks] == [["NEW", "QUEUED", "RUNNING", "DONE"]] * 21


async def test_an_observer_that_raises_harms_nobody() -> None:
    class Broken:
        @hookimpl
        def rhapsody_tasks_changed(self) -> None:
            raise RuntimeError("observer")

    session = Session()
    session.observe(Broken())
    async with session:
        (future,) = await session.submit_tasks(tasks_of(1))
        assert (await future).return_value == 0


def test_an_observer_with_an_unknown_hook_is_refused() -> None:
    class Typo:
        @hookimpl
        def rhapsody_task_changed(self) -> None: ...

    with pytest.raises(InvalidBackendError, match="rhapsody_task_changed"):
        Session().observe(Typo())
