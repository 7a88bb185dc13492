"""The process pool's options for its workers: an initializer, variables, and how many tasks each runs."""

from __future__ import annotations

import os
from typing import Any

import pytest
from rhapsody.api import BackendConfigurationError, ComputeTask, Session, WorkerLostError
from rhapsody.backends import ConcurrentExecutionBackend

pytestmark = pytest.mark.usefixtures("leaves_nothing")


def pool(**options: Any) -> Session:
    return Session([ConcurrentExecutionBackend(executor="processes", max_workers=2, **options)])


def prepare(value: str) -> None:
    os.environ["PREPARED"] = value


def fail() -> None:
    raise LookupError("no licence")


def state(_: int) -> tuple[str | None, str | None, int]:
    return os.environ.get("PREPARED"), os.environ.get("HOME"), os.getpid()


async def test_workers_are_prepared() -> None:
    """The initializer has run before the first task of a worker, which has the variables that the pool was given."""
    session = pool(initializer=prepare, initargs=("yes",), environment={"HOME": None, "OTHER": "1"})
    async with session:
        found = [value async for value in session.map(state, range(50))]
        task = ComputeTask(function=os.getenv, args=("OTHER",))
        await session.submit_tasks([task])
        assert (await task).return_value == "1"
    assert {(prepared, home) for prepared, home, _ in found} == {("yes", None)}


async def test_a_failed_initializer_fails_tasks() -> None:
    """What the initializer raises is the error of each task, and says where it is from."""
    async with pool(initializer=fail) as session:
        task = ComputeTask(function=state, args=(1,))
        await session.submit_tasks([task])
        with pytest.raises(LookupError, match="no licence") as caught:
            await task
    assert "the initializer of the worker" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("batching", [True, False])
async def test_workers_are_replaced(batching: bool) -> None:
    """A worker runs no more tasks than it may, whatever their batches, and no task is lost by its end."""
    async with pool(max_tasks_per_child=3, batching=batching) as session:
        found = [value async for value in session.map(state, range(40))]
    counts = [[pid for *_, pid in found].count(pid) for pid in {pid for *_, pid in found}]
    assert sum(counts) == 40
    assert max(counts) <= 3


async def test_the_last_task_of_a_worker_may_kill_it() -> None:
    """A worker that dies in the last task that it may run costs that task, and no other."""
    async with pool(max_tasks_per_child=1) as session:
        dies = ComputeTask(function=os._exit, args=(3,))
        others = [ComputeTask(function=state, args=(n,)) for n in range(4)]
        await session.submit_tasks([dies, *others])
        await session.wait_tasks(timeout=60)
    assert isinstance(dies.exception, WorkerLostError)
    assert all(task.state == "DONE" for task in others)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"initializer": 3}, "initializer must be callable"),
        ({"initargs": (1,)}, "there is none"),
        ({"initializer": prepare, "initargs": 3}, "initargs must be a tuple"),
        ({"environment": {"A": 1}}, "environment must map text"),
        ({"max_tasks_per_child": 0}, "max_tasks_per_child must be a positive"),
        ({"executor": "threads", "initializer": prepare}, "for executor='processes'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], says: str) -> None:
    """An option that makes no sense is refused where the backend is made."""
    with pytest.raises(BackendConfigurationError, match=says):
        ConcurrentExecutionBackend(**{"executor": "processes", **options})
