"""The interface for users, as a user writes it: `make types` checks this file, and nothing runs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any, assert_type

from rhapsody.api import (
    BackendError,
    CancelResult,
    ComputeTask,
    Resources,
    RhapsodyError,
    Session,
    TaskError,
    TaskExecutionError,
    TaskState,
    available_backends,
    get_backend,
)
from rhapsody.backends import ConcurrentExecutionBackend, ExecutionBackend
from rhapsody.plugin import BackendCapabilities


def double(n: int) -> int:
    return 2 * n


def endless() -> Iterator[ComputeTask]:
    while True:
        yield ComputeTask(executable="true")


async def sessions(folder: Path) -> None:
    async with Session() as session:
        assert_type(session, Session)
    Session(backends=["concurrent", ConcurrentExecutionBackend("other", executor="processes", max_workers=2)])
    Session(backends={"mine": "concurrent"}, uid="mine", work_dir=folder)
    session = await Session(work_dir=str(folder)).start()
    assert_type(session, Session)
    assert_type(session.backends, tuple[str, ...])
    assert_type(session.uid, str)
    assert_type(session.sandbox, Path)
    assert_type(session.is_closed, bool)
    await session.close(wait=False)


async def tasks(session: Session) -> None:
    function = ComputeTask(function=double, args=(1,), kwargs={}, uid="one", backend="concurrent")
    executable = ComputeTask(
        executable="echo", arguments=["a", 1], environment={"A": "b"}, resources=Resources(ranks=2)
    )
    futures = await session.submit_tasks([function, executable])
    await session.submit_tasks([{"executable": "true"}, {"function": double, "args": (2,)}])
    await session.submit_tasks(ComputeTask(function=double, args=(n,)) for n in range(10))
    assert_type(futures[0], asyncio.Future[ComputeTask])
    assert_type(futures[:1], list[asyncio.Future[ComputeTask]])
    assert_type(await futures[0], ComputeTask)
    assert_type(await function, ComputeTask)
    assert_type(function.result(), ComputeTask)
    assert_type(await session.wait_tasks([function], timeout=3), list[ComputeTask])
    assert_type(await session.wait_tasks(), list[ComputeTask])
    assert_type(await session.cancel_tasks([function]), dict[str, CancelResult])


async def results(session: Session, task: ComputeTask) -> None:
    assert_type(task.uid, str)
    assert_type(task.state, TaskState)
    assert_type(task.is_final, bool)
    assert_type(task.exit_code, int | None)
    assert_type(task.exception, BaseException | None)
    assert_type(task.started_at, float | None)
    number: int = task.return_value  # what a function returns is any value
    assert_type(number, int)
    assert_type(session.map(double, range(3)), AsyncGenerator[Any, None])
    async for value in session.map(pow, range(3), range(3), backend="concurrent", in_flight=10):
        assert_type(value, Any)
    async for ended in session.as_completed(endless(), in_flight=10):
        assert_type(ended, ComputeTask)


def errors(error: TaskExecutionError) -> None:
    assert_type(error.exit_code, int | None)
    caught: list[RhapsodyError] = [error]
    kinds: list[type[RhapsodyError]] = [TaskError, BackendError]
    assert_type(caught + [kind() for kind in kinds], list[RhapsodyError])


def backends() -> None:
    backend = get_backend("concurrent", max_workers=2)
    assert_type(backend, ExecutionBackend)
    assert_type(backend.name, str)
    assert_type(backend.capabilities, BackendCapabilities)
    Session(backends=[backend])
    for info in available_backends():
        assert_type(info.name, str)
        assert_type(info.installed, bool)


def refused(session: Session) -> None:
    """A type checker names these mistakes; an exemption that is not needed any more is an error of its own."""
    ComputeTask(exectuable="true")  # type: ignore[call-arg]  # misspelt
    Session(backend="concurrent")  # type: ignore[call-arg]  # they are several
    Session(backends=ConcurrentExecutionBackend)  # type: ignore[arg-type]  # the class
    session.wait_tasks("task.1")  # type: ignore[type-var, unused-coroutine]  # a uid, and not awaited
