"""Tasks with a limit of time: `timeout` of an attempt, `deadline` of a task."""

from __future__ import annotations

import asyncio
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import (
    CancelResult,
    ComputeTask,
    DependencyError,
    InvalidTaskError,
    Retry,
    Session,
    TaskCanceledError,
    TaskState,
    TaskTimeoutError,
    UnsupportedError,
)
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.plugin import BackendCapabilities, Outcome, Started, hookimpl

from tests.core.local import KINDS, local, run
from tests.core.puppet import Puppet, held

LONG = 300.0  # seconds that no test takes
SHORT = 0.2


class Stoppable(Puppet):
    """Stops what it is asked to stop."""

    capabilities = BackendCapabilities(cancel_functions=True, options=None)
    asked = 0
    answer = CancelResult.STOPPED

    @hookimpl
    async def rhapsody_cancel(self, tasks: Any) -> dict[str, CancelResult]:
        self.asked += len(tasks)
        if self.answer is CancelResult.STOPPED:
            self.context.events.put([Outcome(task.uid, TaskState.CANCELED, started_at=1.0) for task in tasks])
        return dict.fromkeys([task.uid for task in tasks], self.answer)

    def start(self, task: ComputeTask) -> None:
        self.context.events.put([Started(task.uid, time.time())])


def of(task: ComputeTask) -> TaskTimeoutError:
    assert task.state is TaskState.FAILED
    assert isinstance(task.exception, TaskTimeoutError)
    return task.exception


@pytest.mark.parametrize("kind", KINDS)
async def test_executable_has_a_timeout(kind: str) -> None:
    """It is stopped, and fails with what it had written; the worker goes on."""
    script = "echo out; echo err >&2; sleep 300"
    task = ComputeTask(executable=script, shell=True, timeout=1.0)
    after = ComputeTask(executable="echo", arguments=["after"])
    async with local(kind, max_workers=1) as session:
        await session.submit_tasks([task, after])
        await session.wait_tasks(timeout=60)
    error = of(task)
    assert (error.uid, error.limit, error.seconds) == (task.uid, "timeout", 1.0)
    assert (error.stdout, error.stderr, task.stdout) == ("out\n", "err\n", "out\n")
    assert f"task {task.uid} had not ended 1 seconds after it started (timeout)\nerr" in str(error)
    assert after.stdout == "after\n"


async def test_function_has_a_timeout() -> None:
    """A function on processes is stopped; others of its kind, with and without a timeout, are not."""
    slow = ComputeTask(function=time.sleep, args=(LONG,), timeout=SHORT)
    others = [ComputeTask(function=time.sleep, args=(0.001,), timeout=LONG if n % 2 else None) for n in range(40)]
    await run(local("processes"), *others[:20], slow, *others[20:])
    assert of(slow).limit == "timeout"
    assert all(task.state is TaskState.DONE for task in others)


async def test_threads_refuse_it_for_functions() -> None:
    """Where what runs cannot be stopped, both limits are refused at submit, with the remedy."""
    async with local("threads") as session:
        for limit in ({"timeout": 1}, {"deadline": 1.0}):
            task = ComputeTask(function=int, **limit)
            with pytest.raises(
                UnsupportedError, match=r"task .* 'concurrent' cannot stop functions .*cancel_functions"
            ):
                await session.submit_tasks([task])


async def test_fallback_must_stop_it_too() -> None:
    """The backend of later attempts is asked as well."""
    backends = [Stoppable("first"), ConcurrentExecutionBackend(name="second", executor="threads")]
    async with Session(backends=backends) as session:
        task = ComputeTask(function=int, timeout=1, retries=Retry(2, fallback="second"))
        with pytest.raises(UnsupportedError, match=r"'second' cannot stop functions"):
            await session.submit_tasks([task])


async def test_timed_out_task_is_tried_again(tmp_path: Path) -> None:
    """Each attempt has the whole timeout, and `on` may name the error."""
    retry = Retry(4, on=[TaskTimeoutError])
    script = 'echo ran >> "$0"; n=$(wc -l < "$0"); [ "$n" -ge 3 ] || sleep 300; echo $n'
    task = ComputeTask(executable="/bin/sh", arguments=["-c", script, tmp_path / "book"], timeout=2, retries=retry)
    await run(local("threads"), task)
    assert (task.state, task.stdout) == (TaskState.DONE, "3\n")
    assert [type(attempt.error) for attempt in task.attempts] == [TaskTimeoutError, TaskTimeoutError, type(None)]


async def test_waiting_does_not_count() -> None:
    """A timeout begins with the start that the backend reports; a deadline with the submit."""
    backend = Stoppable()
    async with Session(backends=[backend]) as session:
        task, late = ComputeTask(function=int, timeout=SHORT), ComputeTask(function=int, deadline=SHORT)
        await session.submit_tasks([task, late])
        await held(backend, 2)
        with pytest.raises(TaskTimeoutError):
            await asyncio.wait_for(_ended(late), 30)
        assert of(late).limit == "deadline"
        assert "seconds after its submit (deadline)" in str(late.exception)
        assert not task.is_final
        backend.start(task)
        await session.wait_tasks(timeout=30)
        assert of(task).limit == "timeout"


async def test_deadline_covers_all_that_waits() -> None:
    """A task that waits for a slot, a parent or its next attempt ends at its deadline, and so does one that runs."""
    async with local("processes", max_workers=1) as session:
        parent = ComputeTask(function=time.sleep, args=(1.5,))
        queued = ComputeTask(function=int, deadline=SHORT)
        child = ComputeTask(function=int, after=[parent], deadline=SHORT)
        grandchild = ComputeTask(function=int, after=[child])
        again = ComputeTask(executable="false", retries=Retry(9, delay=LONG), deadline=SHORT)
        runs = ComputeTask(executable="sleep", arguments=["300"], deadline=4.0, retries=5)
        await session.submit_tasks([again, parent, queued, child, grandchild, runs])
        await session.wait_tasks(timeout=60)
        assert {of(task).limit for task in (queued, child, again, runs)} == {"deadline"}
        assert isinstance(grandchild.exception, DependencyError)
        assert parent.state is TaskState.DONE
        assert len(runs.attempts) == 1


async def test_cancel_before_the_limit_counts() -> None:
    """A task that was canceled before its time was over is CANCELED."""
    backend = Stoppable()
    async with Session(backends=[backend]) as session:
        task = ComputeTask(function=int, timeout=0.05, deadline=0.1, retries=3)
        await session.submit_tasks([task])
        await held(backend, 1)
        backend.start(task)
        await asyncio.gather(session.cancel_tasks([task]), asyncio.sleep(0.2))
        assert isinstance(task.exception, TaskCanceledError)
        assert backend.asked == 1


async def test_end_before_the_stop_counts() -> None:
    """A task that ends while it is being stopped keeps its result; one that cannot be stopped keeps its real end."""
    backend = Stoppable()
    backend.answer = CancelResult.CANNOT_STOP
    async with Session(backends=[backend]) as session:
        tasks = [ComputeTask(function=int, timeout=0.05), ComputeTask(function=int, deadline=0.05)]
        await session.submit_tasks(tasks)
        await held(backend, 2)
        for task in tasks:
            backend.start(task)
        while backend.asked < 2:
            await asyncio.sleep(0.01)
        assert not any(task.is_final for task in tasks)
        backend.finish(*tasks)
        await session.wait_tasks(timeout=30)
        assert [task.return_value for task in tasks] == ["value", "value"]


async def test_no_timer_outlives_its_task() -> None:
    """Once a task has ended nothing is left of its limits, and nothing at the end of the session."""
    backend = Stoppable()
    session = Session(backends=[backend])
    async with session:
        ends = ComputeTask(function=int, timeout=LONG, deadline=LONG)
        stays = ComputeTask(function=int, timeout=LONG, deadline=LONG)
        await session.submit_tasks([ends, stays])
        await held(backend, 2)
        backend.start(ends)
        backend.start(stays)
        backend.finish(ends)
        await asyncio.wait_for(_ended(ends), 30)
        timeouts = session._dispatcher._timeouts
        assert [*timeouts._timers] == [stays]
        await session.close(wait=False)
    assert not timeouts
    left = [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
    assert not [handle for handle in left if handle.when() > asyncio.get_running_loop().time() + LONG / 2]


async def _ended(task: ComputeTask) -> None:
    await task


@pytest.mark.parametrize("value", [0, -1, True, "soon", float("nan")])
def test_limits_are_seconds(value: Any) -> None:
    """Anything but a number above 0 is refused where it is written."""
    for name in ("timeout", "deadline"):
        with pytest.raises(InvalidTaskError, match=f"task 't': {name} must be a number of seconds above 0"):
            ComputeTask(function=int, uid="t", **{name: value})


def test_error_travels() -> None:
    """The error can be pickled, with what had been written."""
    error = TaskTimeoutError("t", "deadline", 2.5, "out", "err")
    copy = pickle.loads(pickle.dumps(error))  # our own
    assert (str(copy), copy.stdout, copy.limit) == (str(error), "out", "deadline")
