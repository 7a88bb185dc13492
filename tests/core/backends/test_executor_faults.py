"""Executors of the caller that break, are shut down or cancel what they hold."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest
from rhapsody.api import ComputeTask, Session, SubmitError, WorkerLostError
from rhapsody.backends import ConcurrentExecutionBackend

from .pool import run

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.mark.parametrize("cancel_futures", [False, True])
async def test_owner_shutdown_loses_no_task(cancel_futures: bool) -> None:
    """An executor that its owner shuts down loses no task."""
    release = threading.Event()
    executor = ThreadPoolExecutor(1)
    async with Session(backends=[ConcurrentExecutionBackend(executor=executor)]) as session:
        executor.submit(release.wait, 60)  # of the owner's own: ours wait behind it
        tasks = [ComputeTask(function=pow, args=(i, 2)) for i in range(100)]
        await session.submit_tasks(tasks)
        executor.shutdown(wait=False, cancel_futures=cancel_futures)
        release.set()
        await session.wait_tasks(tasks, timeout=60)
        if cancel_futures:
            assert {type(task.exception) for task in tasks} == {SubmitError}
        else:
            assert [task.return_value for task in tasks] == [i * i for i in range(100)]
        await asyncio.to_thread(executor.shutdown)  # until then a thread that is about to leave may take one more
        (late,) = await run(session, ComputeTask(function=int))
        assert isinstance(late.exception, SubmitError)


async def test_failing_initializer_hangs_nobody() -> None:
    """A thread pool whose initializer fails fails the tasks and hangs nobody."""

    def initialize() -> None:
        raise RuntimeError("no license")

    with ThreadPoolExecutor(2, initializer=initialize) as executor:
        async with Session(backends=[ConcurrentExecutionBackend(executor=executor)]) as session:
            tasks = await run(session, *(ComputeTask(function=int) for _ in range(10)))
            assert {type(task.exception) for task in tasks} == {SubmitError}


async def test_broken_pool_fails_what_it_held() -> None:
    """The caller's process pool that breaks fails what it held; later submits say so."""
    with ProcessPoolExecutor(2) as executor:
        async with Session(backends=[ConcurrentExecutionBackend(executor=executor)]) as session:
            (bad,) = await run(session, ComputeTask(function=os._exit, args=(1,)))
            assert isinstance(bad.exception, WorkerLostError)
            (late,) = await run(session, ComputeTask(function=int))
            assert isinstance(late.exception, SubmitError)
    del executor, bad, late
    gc.collect()  # a broken pool of the standard library closes its pipes no earlier


async def test_owner_cancel_loses_no_batch() -> None:
    """Batches that the owner of an executor cancels are not lost."""
    release = threading.Event()

    class Pool(ThreadPoolExecutor):
        """Not taken for a pool of threads: batches travel as bytes."""

    pool = Pool(1)
    held: list[Any] = []

    class Wrapped(ProcessPoolExecutor):
        def __init__(self) -> None:
            self._max_workers = 1

        def submit(self, *args: Any, **kwargs: Any) -> Any:
            held.append(pool.submit(*args, **kwargs))
            return held[-1]

    pool.submit(release.wait, 60)
    async with Session(backends=[ConcurrentExecutionBackend(executor=Wrapped())]) as session:
        tasks = [ComputeTask(function=pow, args=(i, 2)) for i in range(4)]
        await session.submit_tasks(tasks)
        assert held[0].cancel()
        release.set()
        await session.wait_tasks(tasks, timeout=60)
        assert [task.return_value for task in tasks] == [0, 1, 4, 9]
    pool.shutdown()
