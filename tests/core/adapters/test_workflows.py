"""Real workflows of radical.asyncflow on the local backend."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import TaskExecutionError
from rhapsody.backends import ConcurrentExecutionBackend

asyncflow = pytest.importorskip("radical.asyncflow", reason="radical.asyncflow is not installed")

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture(params=["threads", "processes"])
async def flow(request: pytest.FixtureRequest, work_dir: Path) -> AsyncIterator[Any]:
    backend = await ConcurrentExecutionBackend(executor=request.param, max_workers=2)
    engine = await asyncflow.WorkflowEngine.create(backend=backend)
    yield engine
    await engine.shutdown()
    assert not backend.is_attached


async def test_workflow_follows_dependencies(flow: Any) -> None:
    """A workflow of functions and executables follows its dependencies."""

    @flow.function_task
    async def simulate(i: int) -> int:
        return i * i

    @flow.function_task
    async def total(*parts: int) -> int:
        return sum(parts)

    @flow.executable_task
    async def show(value: int) -> str:
        return f"echo total is {value}"

    value = await asyncio.wait_for(total(*(simulate(i) for i in range(10))), 60)
    assert value == 285
    assert (await asyncio.wait_for(show(value), 60)).strip() == "total is 285"


async def test_failure_fails_dependents(flow: Any) -> None:
    """A failing task fails its future and what depends on it."""

    @flow.function_task
    async def fail() -> None:
        raise ZeroDivisionError("in the task")

    @flow.function_task
    async def after(_: Any) -> int:
        return 1

    @flow.executable_task
    async def wrong() -> str:
        return "sh -c 'echo why >&2; exit 3'"

    failing = fail()
    dependent = after(failing)
    with pytest.raises(ZeroDivisionError, match="in the task"):
        await asyncio.wait_for(failing, 60)
    with pytest.raises(Exception, match="fail"):
        await asyncio.wait_for(dependent, 60)
    with pytest.raises(TaskExecutionError, match="exit code 3\nwhy"):
        await asyncio.wait_for(wrong(), 60)


async def test_canceled_executable_in_workflow(flow: Any) -> None:
    """A canceled executable is stopped and the workflow goes on."""

    @flow.executable_task
    async def forever() -> str:
        return "sleep 600"

    @flow.function_task
    async def quick() -> int:
        return 7

    future = forever()
    while getattr(future, "state", None) != "RUNNING":
        await asyncio.sleep(0.01)
    began = time.monotonic()
    future.cancel()
    with pytest.raises(asyncio.CancelledError):
        await future
    assert time.monotonic() - began < 60
    assert await asyncio.wait_for(quick(), 60) == 7


async def test_fan_of_a_thousand_tasks(flow: Any) -> None:
    """A fan of a thousand tasks comes together."""

    @flow.function_task
    async def leaf(i: int) -> int:
        return i

    @flow.function_task
    async def root(*leaves: int) -> int:
        return sum(leaves)

    leaves = [leaf(i) for i in range(1000)]
    assert await asyncio.wait_for(root(*leaves), 100) == sum(range(1000))


async def test_two_engines_share_a_backend(work_dir: Path) -> None:
    """Two engines share a backend though their uids repeat."""
    backend = await ConcurrentExecutionBackend(max_workers=2)
    results = []
    for _ in range(2):
        engine = await asyncflow.WorkflowEngine.create(backend=backend)

        @engine.function_task
        async def name(i: int) -> int:
            return i

        results.append(await asyncio.gather(*(name(i) for i in range(20))))
        await engine.shutdown()
    assert results == [list(range(20))] * 2
