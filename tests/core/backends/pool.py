"""A session on a pool of processes, and what its tests ask of tasks."""

from __future__ import annotations

import asyncio
from typing import Any

from rhapsody.api import ComputeTask, Session, TaskState
from rhapsody.backends import ConcurrentExecutionBackend


def processes(max_workers: int = 2, **options: Any) -> Session:
    return Session(
        backends=[ConcurrentExecutionBackend("pool", executor="processes", max_workers=max_workers, **options)]
    )


async def run(session: Session, *tasks: ComputeTask) -> tuple[ComputeTask, ...]:
    await session.submit_tasks(tasks)
    await session.wait_tasks(tasks, timeout=60)
    return tasks


async def running(*tasks: ComputeTask) -> None:
    while any(task.state is not TaskState.RUNNING for task in tasks):
        assert not any(task.is_final for task in tasks)
        await asyncio.sleep(0.005)


def pid_of(task: ComputeTask) -> int:
    return int(str(task.ran_on).rpartition(":")[2])
