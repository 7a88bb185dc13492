"""Closing the local backend in the middle of everything."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from rhapsody.api import ComputeTask, Session, SessionClosedError, TaskCanceledError, TaskState
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.plugin import hookimpl

pytestmark = pytest.mark.usefixtures("leaves_nothing")


def local(kind: Any, max_workers: int = 2) -> Session:
    return Session(backends=[ConcurrentExecutionBackend(executor=kind, max_workers=max_workers)])


async def test_endless_thread_task_is_failed() -> None:
    """A function that never returns in a thread is failed at close, and the session closes."""
    release = threading.Event()
    session = local("threads")
    stuck, waiting = ComputeTask(function=release.wait), [ComputeTask(function=int) for _ in range(5)]
    futures = await session.submit_tasks([stuck, ComputeTask(function=release.wait), *waiting])
    while stuck.state is not TaskState.RUNNING:
        await asyncio.sleep(0.01)
    await session.close(wait=False)
    assert all(future.done() for future in futures)
    with pytest.raises(SessionClosedError, match=stuck.uid):
        await stuck
    assert {type(task.exception) for task in waiting} == {TaskCanceledError}
    release.set()


@pytest.mark.parametrize("kind", ["threads", "processes", "thread pool"])
async def test_close_resolves_every_future(kind: str, tmp_path: Path) -> None:
    """Closing in the middle resolves every future, and nothing runs afterwards."""

    def mark(i: int) -> None:
        time.sleep(0.002)
        (tmp_path / str(i)).touch()

    pool = ThreadPoolExecutor(2) if kind == "thread pool" else None
    for _ in range(5):
        session = local(pool or kind)
        tasks = [ComputeTask(function=mark, args=(i,)) for i in range(500)]
        futures = await session.submit_tasks(tasks)
        while not any(task.is_final for task in tasks):
            await asyncio.sleep(0.001)
        await session.close(wait=False)
        assert all(future.done() for future in futures)
        after = {path.name for path in tmp_path.iterdir()}
        await asyncio.sleep(0.02)
        assert {path.name for path in tmp_path.iterdir()} == after
        for i, task in enumerate(tasks):
            assert task.state in (TaskState.DONE, TaskState.CANCELED)
            if task.state is TaskState.DONE or kind != "processes":
                assert (str(i) in after) == (task.state is TaskState.DONE)
        for name in after:
            (tmp_path / name).unlink()
    if pool is not None:
        pool.shutdown()


async def test_waiting_close_ends_all_tasks() -> None:
    """A close that waits ends every task normally, however many callers close at once."""
    session = local("processes")
    tasks = [ComputeTask(function=pow, args=(i, 2)) for i in range(2000)]
    await session.submit_tasks(tasks)
    await asyncio.gather(*(session.close() for _ in range(10)))
    assert [task.return_value for task in tasks] == [i * i for i in range(2000)]


@pytest.mark.parametrize("kind", ["threads", "processes"])
async def test_sequential_sessions_leave_nothing(kind: str) -> None:
    """Many sessions, one after the other, leave no thread, process or descriptor."""
    me = psutil.Process()
    for i in range(40 if kind == "threads" else 8):
        async with local(kind) as session:
            tasks = [ComputeTask(function=pow, args=(2, 2)), ComputeTask(executable="true")]
            await session.submit_tasks(tasks[: 1 + (i % 10 == 0)])
        if i == 3:
            held = me.num_fds(), threading.active_count(), len(me.children())
    assert (me.num_fds(), threading.active_count(), len(me.children())) == held


async def test_each_end_is_reported_once() -> None:
    """Observers see exactly one end of each task, whatever ends it."""
    ends: dict[str, int] = {}

    class Book:
        @hookimpl
        def rhapsody_tasks_changed(self, transitions: Any) -> None:
            for change in transitions:
                if change.new.is_final:
                    ends[change.task.uid] = ends.get(change.task.uid, 0) + 1

    tasks: list[ComputeTask] = []
    for i in range(6):
        session = local(("threads", "processes")[i % 2])
        session.observe(Book())
        mine = [ComputeTask(function=time.sleep, args=(0.001,)) for _ in range(300)]
        tasks += mine
        await session.submit_tasks(mine)
        await asyncio.sleep(0.01 * i)
        await asyncio.gather(
            session.cancel_tasks(mine[::3]), session.cancel_tasks(mine[::2]), session.close(wait=i < 3)
        )
    assert ends == {task.uid: 1 for task in tasks}
    assert all(task.is_final for task in tasks)
