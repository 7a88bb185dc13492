"""Results that stay on their workers."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rhapsody.api import (
    ComputeTask,
    SerializationError,
    Session,
    SessionClosedError,
    TaskState,
    UnsupportedError,
    WorkerLostError,
)
from rhapsody.backends import ConcurrentExecutionBackend, DaskExecutionBackend

if TYPE_CHECKING:
    from distributed import LocalCluster

pytestmark = [pytest.mark.engine("dask"), pytest.mark.timeout(240)]
Until = Callable[..., Awaitable[None]]
SIZE = 2**21


def make() -> tuple[int, bytearray]:
    return os.getpid(), bytearray(SIZE)


async def make_later() -> bytes:
    await asyncio.sleep(0)
    return b"later"


def write(made: tuple[int, bytearray]) -> tuple[int, int]:
    """Change the result, and return where it was made, and what is in it now."""
    made[1][0] += 1
    return made[0], made[1][0]


async def fetch_until_lost(task: ComputeTask) -> None:
    while True:  # until Dask has noticed
        await task.fetch()


def unpicklable() -> Any:
    return threading.Lock()


async def test_children_take_it_there(session: Session) -> None:
    """Each child has a copy of its own, and so has a fetch; one that is submitted later too."""
    first = ComputeTask(function=make, keep=True)
    children = [ComputeTask(function=write, args=(first,)) for _ in range(4)]
    await session.submit_tasks([*children, first])
    await session.wait_tasks()
    assert first.result().return_value.uid == first.uid
    pid, data = await first.fetch()
    assert (pid != os.getpid(), len(data)) == (True, SIZE)
    assert [child.result().return_value for child in children] == [(pid, 1)] * 4
    late = ComputeTask(function=write, kwargs={"made": first})
    await session.submit_tasks([late])
    assert (await late).return_value == (pid, 1)


async def test_coroutines_keep_too(session: Session) -> None:
    """What a coroutine function returns is kept, and its prints come home."""
    task = ComputeTask(function=make_later, keep=True, capture_stdio=True)
    await session.submit_tasks([task])
    assert await task.fetch() == b"later"
    assert task.stdout == ""


async def test_unpicklable_result_fails(session: Session) -> None:
    """A result that cannot be pickled could not go anywhere: the task fails."""
    task = ComputeTask(function=unpicklable, keep=True)
    await session.submit_tasks([task])
    with pytest.raises(SerializationError, match="cannot be kept"):
        await task


async def test_lost_worker_loses_it(tmp_path: Path) -> None:
    """A fetch, and a child, of a result whose worker died fail with WorkerLostError; the task is not run again."""
    book = tmp_path / "book"

    def made() -> int:
        with book.open("a") as file:
            file.write("ran\n")
        return os.getpid()

    resources = {"n_workers": 2, "threads_per_worker": 1}
    async with Session([DaskExecutionBackend(resources)], work_dir=tmp_path) as session:
        first = ComputeTask(function=made, keep=True, uid="first")
        await session.submit_tasks([first])
        os.kill(await first.fetch(), signal.SIGKILL)
        child = ComputeTask(function=abs, args=(first,))
        with pytest.raises(WorkerLostError, match="task first, which a worker of backend 'dask' kept, was lost"):
            await fetch_until_lost(first)
        await session.submit_tasks([child])
        with pytest.raises(WorkerLostError, match="task first"):
            await child
    assert book.read_text() == "ran\n"


async def test_handle_frees_it(session: Session, cluster: LocalCluster, until: Until) -> None:
    """Dask forgets the result when nobody has the handle to it any more."""
    task = ComputeTask(function=make, keep=True)
    await session.submit_tasks([task])
    await task
    key = task.return_value.held.key
    assert key in cluster.scheduler.tasks
    task.return_value = None

    def is_forgotten() -> bool:
        gc.collect()
        return key not in cluster.scheduler.tasks

    await until(is_forgotten)


async def test_session_frees_it(cluster: LocalCluster, tmp_path: Path, until: Until) -> None:
    """After its session, a result is gone from the user's cluster, and fetch says so."""
    task = ComputeTask(function=make, keep=True)
    async with Session([DaskExecutionBackend(cluster=cluster)], work_dir=tmp_path) as session:
        await session.submit_tasks([task])
        await task
    with pytest.raises(SessionClosedError, match=f"task {task.uid} was kept"):
        await task.fetch()
    await until(lambda: not [key for key in cluster.scheduler.tasks if "rhapsody" in str(key)])


async def test_what_it_cannot_do_is_refused(cluster: LocalCluster, tmp_path: Path) -> None:
    """A child on another backend, an executable, and Dask's own retries are refused at submit."""
    backends = [DaskExecutionBackend(cluster=cluster), ConcurrentExecutionBackend()]
    async with Session(backends, work_dir=tmp_path) as session:
        first = ComputeTask(function=make, keep=True)
        elsewhere = ComputeTask(function=write, args=(first,), backend="concurrent")
        program = ComputeTask(executable="echo", arguments=[first])
        for child in (elsewhere, program):
            with pytest.raises(UnsupportedError, match="keeps for functions that run there"):
                await session.submit_tasks([first, child])
        again = ComputeTask(function=make, keep=True, backend_options={"retries": 1})
        with pytest.raises(UnsupportedError, match="give retries= to the task instead"):
            await session.submit_tasks([again])
        assert first.state is TaskState.NEW
