"""A session on the local backend."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Executor
from pathlib import Path

import pytest
from rhapsody.api import ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend

KINDS = ["threads", "processes"]


def local(executor: str | Executor | None = None, max_workers: int | None = 2) -> Session:
    return Session(backends=[ConcurrentExecutionBackend(executor=executor, max_workers=max_workers)])


async def run(session: Session, *tasks: ComputeTask) -> tuple[ComputeTask, ...]:
    async with session:
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks, timeout=60)
    return tasks


async def gone(pid: int) -> None:
    for _ in range(500):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return  # dead, and waiting for whoever inherited it
        await asyncio.sleep(0.01)
    pytest.fail(f"process {pid} is still there")
