"""Tasks that are tried again."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import (
    BackendLostError,
    BackendNotFoundError,
    CancelResult,
    ComputeTask,
    InvalidTaskError,
    Retry,
    Session,
    TaskExecutionError,
    TaskState,
    UnsupportedError,
    WorkerLostError,
)
from rhapsody.plugin import BackendCapabilities, Outcome, Started, hookimpl

from tests.core.local import KINDS, local, run
from tests.core.puppet import Puppet, held


def third_time(book: str) -> int:
    """Fail twice; the attempts are counted in a file."""
    with Path(book).open("a") as lines:
        lines.write("ran\n")
    ran = len(Path(book).read_text().splitlines())
    if ran < 3:
        raise ValueError(f"attempt {ran}")
    return ran


class Watcher:
    """Notes the states of each task."""

    def __init__(self) -> None:
        self.seen: dict[str, list[str]] = {}

    @hookimpl
    def rhapsody_tasks_changed(self, transitions: Any) -> None:
        for change in transitions:
            self.seen.setdefault(change.task.uid, [change.old.value]).append(change.new.value)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def failed(task: ComputeTask, error: BaseException | None = None) -> Outcome:
    return Outcome(
        task.uid, TaskState.FAILED, exception=error or ValueError("on purpose"), started_at=1.0, ended_at=2.0
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_function_is_tried_again(kind: str, tmp_path: Path) -> None:
    """A function that fails runs again, as often as asked for, and each attempt is kept."""
    task = ComputeTask(function=third_time, args=(str(tmp_path / "book"),), retries=5)
    await run(local(kind), task)
    assert (task.state, task.return_value, task.attempt, task.exception) == (TaskState.DONE, 3, 3, None)
    assert [str(attempt.error) for attempt in task.attempts] == ["attempt 1", "attempt 2", "None"]
    assert all(attempt.backend == "concurrent" and attempt.ran_on for attempt in task.attempts)
    times = [time for attempt in task.attempts for time in (attempt.started_at, attempt.ended_at)]
    assert times == sorted(time for time in times if time is not None)


async def test_executable_is_tried_again(tmp_path: Path) -> None:
    """An executable is tried again for another exit code than 0; the last error is the task's."""
    script = f"echo ran >> {tmp_path / 'book'}; exit 3"
    task = ComputeTask(executable=script, shell=True, retries=2)
    await run(local("threads"), task)
    assert (tmp_path / "book").read_text().split() == ["ran"] * 3
    assert isinstance(task.exception, TaskExecutionError)
    assert len(task.attempts) == 3


async def test_exit_codes_choose() -> None:
    """With exit codes in `on`, no other exit code is tried again."""
    tasks = [ComputeTask(executable=f"exit {code}", shell=True, retries=Retry(3, on=[3])) for code in (3, 4)]
    await run(local("threads"), *tasks)
    assert [len(task.attempts) for task in tasks] == [3, 1]


async def test_lost_and_own_errors_are_told_apart() -> None:
    """`on` separates lost workers, the function's own errors, and types of exceptions."""
    backend = Puppet()
    async with Session(backends=[backend]) as session:
        lost, own = WorkerLostError("gone"), KeyError("own")
        wanted = {
            ("lost",): (True, False),
            ("error",): (False, True),
            (KeyError,): (False, True),
            KeyError: (False, True),
        }
        for on, again in wanted.items():
            for error, expected in zip((lost, own), again, strict=True):
                task = ComputeTask(function=int, retries=Retry(2, on=on))
                await session.submit_tasks([task])
                await held(backend, 1)
                backend.batches.clear()
                backend.context.events.put([failed(task, error)])
                if expected:
                    await held(backend, 1)
                    backend.batches.clear()
                    backend.finish(task)
                await session.wait_tasks()
                assert (task.state is TaskState.DONE) is expected


async def test_states_of_a_retried_task() -> None:
    """Observers see a task go back to WAITING, and no final state that is revoked."""
    backend, watcher = Puppet(), Watcher()
    async with Session(backends=[backend]) as session:
        session.observe(watcher)
        task = ComputeTask(function=int, retries=1)
        child = ComputeTask(function=int, after=[task])
        (future, _) = await session.submit_tasks([task, child])
        await held(backend, 1)
        backend.context.events.put([Started(task.uid, 1.0, "here"), failed(task)])
        await held(backend, 2)
        assert not future.done()
        assert (task.state, child.state) == (TaskState.QUEUED, TaskState.WAITING)
        assert (task.started_at, task.exception, len(task.attempts)) == (None, None, 1)
        backend.finish(task)
        await held(backend, 3)
        backend.finish(child)
    assert watcher.seen[task.uid] == ["NEW", "QUEUED", "RUNNING", "WAITING", "QUEUED", "DONE"]


async def test_delay_holds_no_slot() -> None:
    """During the delay a task is WAITING, others run, and `explain` says what for."""
    backend = Puppet()
    async with Session(backends=[backend]) as session:
        task, other = ComputeTask(function=int, retries=Retry(3, delay=60, backoff=2)), ComputeTask(function=int)
        await session.submit_tasks([task])
        await held(backend, 1)
        backend.context.events.put([failed(task)])
        await session.submit_tasks([other])
        await held(backend, 2)
        backend.finish(other)
        await session.wait_tasks([other])
        assert session.explain(task).startswith(f"task {task.uid} waits ")
        assert session.explain(task).endswith("seconds for attempt 2")
        assert await session.cancel_tasks([task]) == {task.uid: CancelResult.NEVER_STARTED}
    assert task.state is TaskState.CANCELED


async def test_delays_grow(tmp_path: Path) -> None:
    """Each delay is the one before it times the backoff."""
    task = ComputeTask(function=third_time, args=(str(tmp_path / "book"),), retries=Retry(3, delay=0.1, backoff=3))
    await run(local("threads"), task)
    ran = task.attempts
    gaps = [later.started_at - one.ended_at for one, later in itertools.pairwise(ran)]  # type: ignore[operator]
    assert gaps[0] >= 0.1
    assert gaps[1] >= 0.3


async def test_crash_limit_ends_retries() -> None:
    """A task whose workers die is not tried again past its limit, whatever its retries; its neighbours are unharmed."""
    task = ComputeTask(function=die, retries=50, crash_limit=2)
    others = [ComputeTask(function=int) for _ in range(20)]
    await run(local("processes"), task, *others)
    assert isinstance(task.exception, WorkerLostError)
    assert len(task.attempts) == 2
    assert task.exception.__notes__ == ["not tried again: its worker was lost 2 times (crash_limit)"]
    assert {other.state for other in others} == {TaskState.DONE}


async def test_fallback_to_another_backend() -> None:
    """Later attempts run on the fallback, also where the first backend is lost."""
    one, two = Puppet("one"), Puppet("two")
    async with Session(backends=[one, two]) as session:
        tasks = [ComputeTask(function=int, retries=Retry(2, fallback="two")) for _ in range(2)]
        await session.submit_tasks(tasks)
        await held(one, 2)
        one.context.events.put([failed(tasks[0])])
        await held(two, 1)
        one.lose()
        await held(two, 2)
        two.finish(*tasks)
        await session.wait_tasks()
    for task in tasks:
        assert (task.state, task.backend) == (TaskState.DONE, "two")
        assert [attempt.backend for attempt in task.attempts][:1] == ["one"]
    assert isinstance(tasks[1].attempts[0].error, BackendLostError)


async def test_lost_backend_is_not_tried_again() -> None:
    """Without a fallback, a task of a lost backend fails, whatever its retries."""
    backend = Puppet()
    async with Session(backends=[backend]) as session:
        task = ComputeTask(function=int, retries=1000)
        await session.submit_tasks([task])
        await held(backend, 1)
        backend.lose()
        await session.wait_tasks()
    assert isinstance(task.exception, BackendLostError)


async def test_canceled_task_is_not_tried_again() -> None:
    """A task that fails while it is canceled ends, and is not run again."""
    backend = Puppet()
    async with Session(backends=[backend]) as session:
        task = ComputeTask(function=int, retries=5)
        await session.submit_tasks([task])
        await held(backend, 1)
        assert await session.cancel_tasks([task]) == {task.uid: CancelResult.CANNOT_STOP}
        backend.context.events.put([failed(task)])
        await session.wait_tasks()
    assert (task.state, len(backend.tasks)) == (TaskState.FAILED, 1)


async def test_fallback_is_checked_at_submit() -> None:
    """A fallback that the session does not have, or that cannot run the task, is refused."""
    deaf = Puppet("functions")
    deaf.capabilities = BackendCapabilities(executables=False)
    async with Session(backends=[Puppet(), deaf]) as session:
        with pytest.raises(BackendNotFoundError, match=r"fall back to backend 'x'; session .* has puppet, functions"):
            await session.submit_tasks([ComputeTask(function=int, retries=Retry(fallback="x"))])
        with pytest.raises(UnsupportedError, match="backend 'functions' cannot run executables"):
            await session.submit_tasks([ComputeTask(executable="true", retries=Retry(fallback="functions"))])


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"attempts": 0}, "attempts must be a whole number from 1"),
        ({"attempts": 1.5}, "attempts must be a whole number from 1"),
        ({"delay": -1}, "delay must be a number from 0"),
        ({"delay": "soon"}, "delay must be a number from 0"),
        ({"backoff": 0.5}, "backoff must be a number from 1"),
        ({"jitter": 2}, "jitter must be a number from 0"),
        ({"on": ["losses"]}, "on takes 'lost', 'error', types of exceptions and exit codes"),
        ({"on": [int]}, "on takes 'lost', 'error', types of exceptions and exit codes"),
        ({"fallback": 3}, "fallback must be the name of a backend"),
    ],
)
def test_senseless_retry_is_refused(fields: dict[str, Any], complaint: str) -> None:
    """A Retry that makes no sense is refused where it is written."""
    with pytest.raises(InvalidTaskError, match=complaint):
        Retry(**fields)


@pytest.mark.parametrize("fields", [{"retries": -1}, {"retries": "often"}, {"retries": True}, {"crash_limit": 0}])
def test_senseless_retries_are_refused(fields: dict[str, Any]) -> None:
    """Retries that are no number and no Retry are refused where the task is described."""
    with pytest.raises(InvalidTaskError, match=r"task 't': (retries|crash_limit) must be"):
        ComputeTask(function=int, uid="t", **fields)


async def test_close_ends_a_delay() -> None:
    """A session that is closed in a hurry cancels what waits for its next attempt."""
    backend = Puppet()
    session = await Session(backends=[backend]).start()
    task = ComputeTask(function=int, retries=Retry(delay=600))
    await session.submit_tasks([task])
    await held(backend, 1)
    backend.context.events.put([failed(task)])
    while not task.attempts:
        await asyncio.sleep(0)
    await session.close(wait=False)
    assert task.state is TaskState.CANCELED
