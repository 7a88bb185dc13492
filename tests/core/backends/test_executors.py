"""Executors of the caller."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest
from rhapsody.api import BackendConfigurationError, ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend

from ..local import local, run

pytestmark = pytest.mark.usefixtures("leaves_nothing")


async def test_callers_thread_pool_stays_open() -> None:
    """A thread pool of the caller is used and left open."""
    with ThreadPoolExecutor(max_workers=3, thread_name_prefix="mine") as executor:
        backend = ConcurrentExecutionBackend(executor=executor)
        tasks = [ComputeTask(function=lambda: threading.current_thread().name) for _ in range(100)]
        await run(Session(backends=[backend]), *tasks)
        assert {task.return_value[:4] for task in tasks} == {"mine"}
        assert executor.submit(int, "7").result() == 7


async def test_callers_process_pool_stays_open() -> None:
    """A process pool of the caller is used and left open."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("forkserver")) as executor:
        tasks = [ComputeTask(function=os.getpid) for _ in range(50)]
        await run(local(executor, None), *tasks)
        assert {task.return_value for task in tasks} <= set(executor._processes)
        assert executor.submit(int, "7").result() == 7
    # The standard library keeps these two for the life of the program.
    from multiprocessing import forkserver, resource_tracker

    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


async def test_other_executors_get_bytes() -> None:
    """Any other executor gets bytes and returns bytes."""

    class Inline(Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            box: list[Any] = []
            thread = threading.Thread(target=lambda: box.append(fn(*args, **kwargs)))
            thread.start()
            thread.join()
            future.set_result(box[0])
            return future

    tasks = await run(local(Inline(), 2), *(ComputeTask(function=pow, args=(i, 2)) for i in range(20)))
    assert [task.return_value for task in tasks] == [i * i for i in range(20)]


@pytest.mark.parametrize(
    "options", [{"executor": "thread"}, {"executor": 3}, {"max_workers": 0}, {"max_workers": "2"}, {"max_in_flight": 0}]
)
def test_senseless_executor_is_refused(options: dict[str, Any]) -> None:
    """An executor that makes no sense is refused."""
    with pytest.raises(BackendConfigurationError, match=next(iter(options))):
        ConcurrentExecutionBackend(**options)
