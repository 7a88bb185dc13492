"""What a worker of another machine may begin: it asks before, and the scheduler knows."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from distributed import LocalCluster
from rhapsody.api import ComputeTask, Session, TaskState
from rhapsody.backends import DaskExecutionBackend
from rhapsody_dask.allowance import WHOLE, Allowance

pytestmark = [pytest.mark.engine("dask"), pytest.mark.timeout(120)]


def test_questions() -> None:
    """It asks once for a short batch; after a long task, for as many as it last ran between reports."""
    asked: list[int] = []
    allowance = Allowance(lambda tasks: not asked.append(tasks))  # type: ignore[func-returns-value]  # it is None
    assert all(allowance.take() for _ in range(5))
    assert asked == [WHOLE]
    assert allowance.give_back() == 5
    assert all(allowance.take() for _ in range(6))
    assert asked == [WHOLE, 10, 15]
    assert allowance.give_back() == 11


def test_refusal() -> None:
    """After a refusal nothing begins, and nothing is asked."""
    answers = iter([True, False])
    allowance = Allowance(lambda tasks: next(answers))
    assert allowance.take()
    allowance.give_back()
    assert not allowance.take()
    assert allowance.is_refused
    assert not allowance.take()


async def test_worker_of_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Callable[..., Awaitable[None]]
) -> None:
    """A worker that takes the client for another machine's runs all tasks; the scheduler forgets what has ended."""
    monkeypatch.setattr("rhapsody_dask.sending.machine", lambda: "elsewhere")
    async with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0", asynchronous=True
        ) as cluster,
        Session(backends=[DaskExecutionBackend(cluster=cluster)], work_dir=tmp_path) as session,
    ):
        tasks = [ComputeTask(function=abs, args=(-n,)) for n in range(300)]
        tasks += [ComputeTask(function=time.sleep, args=(0.1,)) for _ in range(6)]
        once = ComputeTask(function=int, args=("x",), backend_options={"retries": 1})
        await session.submit_tasks([*tasks, once])
        await session.wait_tasks(timeout=60)
        assert {task.state for task in tasks} == {TaskState.DONE}
        assert isinstance(once.exception, ValueError)
        (watcher,) = [plugin for name, plugin in cluster.scheduler.plugins.items() if name.startswith("rhapsody-")]
        await until(lambda: not watcher._begun)
