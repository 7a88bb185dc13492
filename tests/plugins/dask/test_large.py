"""Large arguments on a cluster whose workers may be on other machines: scattered."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rhapsody.api import ComputeTask, Session
from rhapsody.backends import DaskExecutionBackend
from rhapsody.testing.tasks import Counted, count_up

if TYPE_CHECKING:
    from distributed import LocalCluster

SIZE = 2**21


def peek(value: Any) -> tuple[int, int]:
    return os.getpid(), len(value)


@pytest.fixture
def address(cluster: LocalCluster) -> str:
    """The cluster as one of which nothing is known but its scheduler."""
    return str(cluster.scheduler_address)


async def test_large_arguments_are_scattered(address: str, cluster: LocalCluster, tmp_path: Path) -> None:
    """They travel once, each task has its own copy, handles arrive as values, and nothing of them is left behind."""
    counted, changed = Counted(SIZE), bytearray(SIZE)
    async with Session([DaskExecutionBackend(cluster=address)], work_dir=tmp_path) as session:
        handle = session.share(bytes(SIZE))
        tasks = [ComputeTask(function=peek, args=(value,)) for value in (counted, handle) * 6]
        writes = [ComputeTask(function=count_up, args=(changed,)) for _ in range(6)]
        await session.submit_tasks([*tasks, *writes])
        await session.wait_tasks()
        assert len({task.result().return_value[0] for task in tasks}) == 2, "both workers had them"
        assert {task.return_value[1] for task in tasks} == {SIZE}
        assert {task.result().return_value for task in writes} == {1}
        assert counted.pickled == 1
    assert not [key for key in cluster.scheduler.tasks if "stored" in str(key)]


async def test_scattered_data_survives_a_worker(address: str, tmp_path: Path) -> None:
    """Data that was lost with the worker which had it is scattered again."""
    value = bytearray(SIZE)
    async with Session([DaskExecutionBackend(cluster=address)], work_dir=tmp_path) as session:
        for _ in range(2):
            first = ComputeTask(function=peek, args=(value,))
            await session.submit_tasks([first])
            assert (await first).return_value[1] == SIZE
            ends = ComputeTask(function=os.kill, args=(first.return_value[0], 9))
            await session.submit_tasks([ends])
            await session.wait_tasks()
