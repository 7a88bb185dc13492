"""Worker processes that die, at every moment of their lives."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from rhapsody.api import BackendLostError, ComputeTask, TaskState, WorkerLostError

from .pool import pid_of, processes, run, running

pytestmark = pytest.mark.usefixtures("leaves_nothing")


def close_everything() -> None:
    os.closerange(3, 256)
    os._exit(1)


ENDINGS = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "os._exit": lambda: os._exit(5),
    "a segfault": lambda: ctypes.string_at(0),
    "closing every descriptor": close_everything,
}


@pytest.mark.parametrize("how", ENDINGS)
async def test_death_fails_only_running_task(how: str) -> None:
    """A worker that dies fails the task it ran, and no other."""
    async with processes() as session:
        bad = ComputeTask(function=ENDINGS[how])
        good = [ComputeTask(function=pow, args=(i, 2)) for i in range(200)]
        await run(session, *good[:100], bad, *good[100:])
        assert [task.return_value for task in good] == [i * i for i in range(200)]
        with pytest.raises(WorkerLostError, match=rf"{bad.uid}.*'pool'"):
            await bad


async def test_death_inside_a_batch(tmp_path: Path) -> None:
    """A worker that dies in the middle of a batch fails one task, and none runs twice."""

    def mark(i: int) -> int:
        (tmp_path / f"{i}.{time.monotonic_ns()}").touch()
        if i == 500:
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    async with processes(1, batching={"target": 60}) as session:
        tasks = await run(session, *(ComputeTask(function=mark, args=(i,)) for i in range(1000)))
    assert [i for i, task in enumerate(tasks) if task.state is not TaskState.DONE] == [500]
    assert isinstance(tasks[500].exception, WorkerLostError)
    assert sorted(int(path.name.partition(".")[0]) for path in tmp_path.iterdir()) == list(range(1000))


async def test_idle_death_costs_nothing() -> None:
    """A worker killed while idle is replaced, and nothing fails."""
    async with processes() as session:
        for _ in range(5):
            tasks = await run(session, *(ComputeTask(function=time.sleep, args=(0.02,)) for _ in range(4)))
            for pid in {pid_of(task) for task in tasks}:
                os.kill(pid, signal.SIGKILL)
            tasks = await run(session, *(ComputeTask(function=pow, args=(2, 2)) for _ in range(4)))  # at once
            assert {task.return_value for task in tasks} == {4}


async def test_death_while_sending_a_result(tmp_path: Path) -> None:
    """A worker killed while it sends a result fails that task, and no other."""
    release = tmp_path / "release"

    def large() -> bytes:
        while not release.exists():
            time.sleep(0.005)
        return bytes(50 * 2**20)

    async with processes(1) as session:
        task, after = ComputeTask(function=large), ComputeTask(function=os.getpid)
        await session.submit_tasks([task, after])
        await running(task)
        release.touch()
        time.sleep(0.7)  # nobody reads: it stands in the middle of its result
        os.kill(pid_of(task), signal.SIGKILL)
        with pytest.raises(WorkerLostError, match="signal 9"):
            await task
        assert (await after).return_value != pid_of(task)


async def test_death_with_a_line_held_open(tmp_path: Path) -> None:
    """A killed worker is noticed though a process that its task left holds the line."""

    def fork_and_wait() -> None:
        if not ctypes.CDLL(None).fork():  # as a library does it, unseen by the interpreter
            os.setsid()
            time.sleep(600)
        (tmp_path / "forked").touch()
        time.sleep(600)

    async with processes(1) as session:
        task = ComputeTask(function=fork_and_wait)
        await session.submit_tasks([task])
        await running(task)
        while not (tmp_path / "forked").exists():
            await asyncio.sleep(0.01)
        os.kill(pid_of(task), signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            await asyncio.wait_for(task, 30)
        await run(session, ComputeTask(function=int))


async def test_fork_reports_nothing() -> None:
    """A fork that returns into the worker reports nothing."""
    async with processes(1) as session:
        tasks = await run(session, *(ComputeTask(function=lambda: os.fork() >= 0) for _ in range(3)))
        assert [task.return_value for task in tasks] == [True, True, True]
        assert (await run(session, ComputeTask(function=pow, args=(2, 5))))[0].return_value == 32


async def test_workers_that_never_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that never come up lose the backend, whose error gives their exit code."""
    monkeypatch.setattr("rhapsody.backends.local.pool.lane._BOOT", "raise SystemExit(41)")
    async with processes() as session:
        tasks = [ComputeTask(function=int) for _ in range(10)]
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks, timeout=60)
        for task in tasks:
            with pytest.raises(BackendLostError, match=r"'pool'.*exit code 41"):
                await task
        with pytest.raises(BackendLostError):
            await session.submit_tasks([ComputeTask(function=int)])


async def test_close_skips_the_restart_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A close does not wait for a pool that pauses before its next attempt."""
    monkeypatch.setattr("rhapsody.backends.local.pool.lane._BOOT", "raise SystemExit(41)")
    monkeypatch.setattr("rhapsody.backends.local.pool.lane._PAUSES", (600.0,))
    session = processes(1)
    await session.submit_tasks([ComputeTask(function=int)])
    await asyncio.sleep(0.3)
    await asyncio.wait_for(session.close(wait=False), 60)


async def test_write_to_dead_worker(tmp_path: Path) -> None:
    """A failed write to a dead worker loses no result that it had sent; nothing runs twice."""
    sizes = {0: 340_000, 1: 340_000, 2: 340_000, 3: 40_000}  # the page is full, and the results of 3 and 4 go by line

    def mark(i: int) -> bytes:
        (tmp_path / f"{i}.{time.monotonic_ns()}").touch()
        time.sleep(0.001 if i != 5 else 600)
        return bytes(sizes.get(i, 0))

    async with processes(1, batching={"target": 60}) as session:
        known = await run(session, *(ComputeTask(function=mark, args=(-1,)) for _ in range(130)))  # to be short
        tasks = [ComputeTask(function=mark, args=(i,)) for i in range(100)]
        await session.submit_tasks(tasks)
        last = tasks[0]._batch.tasks[-1]
        assert last not in tasks[:6]
        while not list(tmp_path.glob("0.*")):  # the worker has the batch
            await asyncio.sleep(0)
        while not list(tmp_path.glob("5.*")):  # from here on nobody reads what it sends
            time.sleep(0.005)
        os.kill(pid_of(known[0]), signal.SIGKILL)
        while psutil.Process(pid_of(known[0])).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.005)
        await session.cancel_tasks([last])  # the write fails, before anything is read
        await session.wait_tasks(tasks, timeout=60)
    runs = [int(path.name.partition(".")[0]) for path in tmp_path.iterdir()]
    assert [i for i in range(100) if runs.count(i) != 1] == [tasks.index(last)]
    assert last.state is TaskState.CANCELED
    assert [task for task in tasks if isinstance(task.exception, WorkerLostError)] == [tasks[5]]
