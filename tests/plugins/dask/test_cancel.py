"""What waits never runs, executables are stopped where they run, functions keep their end."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import LocalCluster
from rhapsody.api import CancelResult, ComputeTask, Session, TaskState
from rhapsody.backends import DaskExecutionBackend
from rhapsody_dask import withdraw

pytestmark = [pytest.mark.engine("dask"), pytest.mark.timeout(240)]
Until = Callable[..., Awaitable[None]]


def blockers(gate: Path) -> list[ComputeTask]:
    """Take both workers until the gate is there."""

    def wait(path: str) -> None:
        import pathlib
        import time

        while not pathlib.Path(path).exists():
            time.sleep(0.01)

    return [ComputeTask(function=wait, args=(str(gate),)) for _ in range(2)]


def marker(path: Path) -> ComputeTask:
    def leave(path: str) -> None:
        import pathlib

        with pathlib.Path(path).open("a") as file:
            file.write("x")

    return ComputeTask(function=leave, args=(str(path),))


async def test_queued_tasks_never_run(session: Session, tmp_path: Path, until: Until) -> None:
    """Canceled tasks that wait at the engine never run."""
    held = blockers(tmp_path / "gate")
    await session.submit_tasks(held)
    await until(lambda: all(task.state is TaskState.RUNNING for task in held))
    waiting = [marker(tmp_path / "mark") for _ in range(12)]
    await session.submit_tasks(waiting)
    await asyncio.sleep(0.1)  # they are on their way to Dask, or there
    results = await session.cancel_tasks(waiting)
    assert set(results.values()) == {CancelResult.NEVER_STARTED}
    assert {task.state for task in waiting} == {TaskState.CANCELED}
    (tmp_path / "gate").touch()
    await session.wait_tasks(held, timeout=90)
    (after,) = probe = [marker(tmp_path / "after")]
    await session.submit_tasks(probe)
    await session.wait_tasks(probe, timeout=90)
    assert after.state is TaskState.DONE
    assert not (tmp_path / "mark").exists()


async def test_withdrawn_batch_is_not_lost(
    session: Session, tmp_path: Path, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that reaches a worker which has promised not to begin it is not lost."""
    known = [ComputeTask(function=os.getpid) for _ in range(400)]
    await session.submit_tasks(known)
    await session.wait_tasks(known, timeout=90)  # from now on it is grouped
    held = blockers(tmp_path / "gate")
    await session.submit_tasks(held)
    await until(lambda: all(task.state is TaskState.RUNNING for task in held))
    tasks = [ComputeTask(function=os.getpid) for _ in range(40)]
    await session.submit_tasks(tasks)
    await asyncio.sleep(0.1)
    ask = withdraw._ask_worker

    async def ask_and_dawdle(*args: Any) -> Any:
        answer = await ask(*args)
        (tmp_path / "gate").touch()
        await asyncio.sleep(1)
        return answer

    monkeypatch.setattr(withdraw, "_ask_worker", ask_and_dawdle)
    results = await session.cancel_tasks(tasks[::2])
    await session.wait_tasks(tasks, timeout=30)
    states = {task.uid: task.state for task in tasks[::2]}
    assert {uid: state is TaskState.CANCELED for uid, state in states.items()} == {
        uid: result is CancelResult.NEVER_STARTED for uid, result in results.items()
    }
    assert {task.state for task in tasks[1::2]} == {TaskState.DONE}


@pytest.mark.parametrize("is_late", [True, False])
async def test_late_answer_loses_no_task(session: Session, monkeypatch: pytest.MonkeyPatch, is_late: bool) -> None:
    """A worker's answer to a withdrawal that comes after its batch has ended, or never, costs no task."""
    ask = withdraw._ask_worker

    async def ask_and_dawdle(*args: Any) -> Any:
        answer = await ask(*args)
        await asyncio.sleep(1)
        return answer if is_late else None

    known = [ComputeTask(function=time.sleep, args=(0.005,)) for _ in range(200)]
    await session.submit_tasks(known)
    await session.wait_tasks(known, timeout=90)  # from now on it is grouped
    monkeypatch.setattr(withdraw, "_ask_worker", ask_and_dawdle)
    tasks = [ComputeTask(function=time.sleep, args=(0.005,)) for _ in range(100)]
    await session.submit_tasks(tasks)
    await asyncio.sleep(0.1)  # workers have some, and have begun batches
    results = await session.cancel_tasks(tasks[::2])
    await session.wait_tasks(tasks, timeout=30)
    never = {task.uid for task in tasks[::2] if results[task.uid] is CancelResult.NEVER_STARTED}
    assert never <= {task.uid for task in tasks if task.state is TaskState.CANCELED}
    assert {task.state for task in tasks[1::2]} == {TaskState.DONE}


def mute(path: Path, gate: Path) -> ComputeTask:
    """Hold a worker's interpreter until the gate is there: no thread of it runs, also not the one that answers."""

    def hold(path: str, gate: str) -> None:
        import ctypes
        import pathlib

        pathlib.Path(path).touch()
        ctypes.PyDLL(None).system(f"timeout 60 sh -c 'until [ -e {gate} ]; do sleep 0.05; done'".encode())

    return ComputeTask(function=hold, args=(str(path), str(gate)))


async def silence_one_worker(session: Session, tmp_path: Path, until: Until) -> list[ComputeTask]:
    """Take both workers until the gate is there, one of them so that it does not answer."""
    held = [*blockers(tmp_path / "gate")[:1], mute(tmp_path / "mute", tmp_path / "gate")]
    await session.submit_tasks(held[:1])
    await until(lambda: held[0].state is TaskState.RUNNING)
    await session.submit_tasks(held[1:])
    await until((tmp_path / "mute").exists)
    return held


def runs(folder: Path, tasks: list[ComputeTask]) -> dict[str, int]:
    """Return how often each task ran, by what `marker` wrote."""
    paths = {task.uid: folder / f"mark{i}" for i, task in enumerate(tasks)}
    return {uid: len(path.read_text()) if path.exists() else 0 for uid, path in paths.items()}


def once_or_canceled(tasks: list[ComputeTask]) -> dict[str, int]:
    """Return how often each task must have run, by how it ended."""
    expected = {TaskState.DONE: 1, TaskState.CANCELED: 0}
    return {task.uid: expected[task.state] for task in tasks}


async def test_silent_worker_costs_no_task(
    session: Session, tmp_path: Path, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that does not answer costs no task."""
    monkeypatch.setattr(withdraw, "ANSWER", 0.5)
    held = await silence_one_worker(session, tmp_path, until)
    waiting = [marker(tmp_path / f"mark{i}") for i in range(20)]
    await session.submit_tasks(waiting)
    await asyncio.sleep(0.3)  # some of them wait at the worker that does not answer, others at the scheduler
    results = await session.cancel_tasks([*held, *waiting])
    assert {results[task.uid] for task in held} == {CancelResult.CANNOT_STOP}
    assert CancelResult.NEVER_STARTED in {results[task.uid] for task in waiting}
    (tmp_path / "gate").touch()
    await session.wait_tasks(timeout=30)
    assert {task.state for task in held} == {TaskState.DONE}
    assert runs(tmp_path, waiting) == once_or_canceled(waiting)


async def test_interrupted_cancel_costs_no_task(session: Session, tmp_path: Path, until: Until) -> None:
    """A cancel that is interrupted costs no task."""
    held = await silence_one_worker(session, tmp_path, until)
    waiting = [marker(tmp_path / f"mark{i}") for i in range(20)]
    await session.submit_tasks(waiting)
    await asyncio.sleep(0.3)  # as above
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(session.cancel_tasks([*held, *waiting]), 0.5)
    (tmp_path / "gate").touch()
    await session.wait_tasks(timeout=30)
    assert {task.state for task in held} == {TaskState.DONE}
    assert TaskState.CANCELED in {task.state for task in waiting}
    assert runs(tmp_path, waiting) == once_or_canceled(waiting)


@pytest.mark.parametrize("patience", [0.2, None])
async def test_slow_scheduler_costs_no_task(
    cluster: LocalCluster, tmp_path: Path, until: Until, monkeypatch: pytest.MonkeyPatch, patience: float | None
) -> None:
    """A scheduler that answers late costs no task."""
    monkeypatch.setattr(withdraw, "ANSWER", 0.5)
    backend = DaskExecutionBackend(cluster=cluster.scheduler_address)  # on a loop other than the scheduler's
    async with Session(backends=[backend], work_dir=tmp_path) as session:
        held = blockers(tmp_path / "gate")
        await session.submit_tasks(held)
        await until(lambda: all(task.state is TaskState.RUNNING for task in held))
        waiting = [marker(tmp_path / f"mark{i}") for i in range(20)]
        await session.submit_tasks(waiting)
        await asyncio.sleep(0.3)  # they are at the scheduler
        cluster.loop.add_callback(time.sleep, 1.5)
        try:
            await asyncio.wait_for(session.cancel_tasks(waiting), patience)
        except TimeoutError:
            assert patience is not None
        await until(lambda: all(task.state is TaskState.CANCELED for task in waiting), 30)
        (tmp_path / "gate").touch()
        await session.wait_tasks(timeout=30)
    assert runs(tmp_path, waiting) == once_or_canceled(waiting)


async def test_neighbours_still_run_once(session: Session, tmp_path: Path, until: Until) -> None:
    """The neighbours of a canceled task still run once."""

    def leave(path: str) -> None:
        import pathlib

        with pathlib.Path(path).open("a") as file:
            file.write("x")

    known = [ComputeTask(function=leave, args=(os.devnull,)) for _ in range(300)]
    await session.submit_tasks(known)
    await session.wait_tasks(known, timeout=90)  # from now on it is grouped
    held = blockers(tmp_path / "gate")
    await session.submit_tasks(held)
    await until(lambda: all(task.state is TaskState.RUNNING for task in held))
    tasks = [ComputeTask(function=leave, args=(str(tmp_path / f"mark{i}"),)) for i in range(200)]
    await session.submit_tasks(tasks)
    await asyncio.sleep(0.1)
    results = await session.cancel_tasks(tasks[::2])
    assert set(results.values()) == {CancelResult.NEVER_STARTED}
    (tmp_path / "gate").touch()
    await session.wait_tasks([*held, *tasks], timeout=90)
    assert {task.state for task in tasks[1::2]} == {TaskState.DONE}
    written = {int(path.name.removeprefix("mark")): path.read_text() for path in tmp_path.glob("mark*")}
    assert written == dict.fromkeys(range(1, 200, 2), "x")


async def test_executable_stops_with_children(session: Session, until: Until) -> None:
    """A running executable and its children are stopped."""
    task = ComputeTask(executable="sleep 3033 & sleep 3033", shell=True)
    await session.submit_tasks([task])

    def sleepers() -> list[psutil.Process]:
        return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "3033"]]

    await until(lambda: len(sleepers()) == 2)
    await until(lambda: task.state is TaskState.RUNNING)
    assert await session.cancel_tasks([task]) == {task.uid: CancelResult.STOPPED}
    assert task.state is TaskState.CANCELED
    await until(lambda: not [p for p in sleepers() if p.status() != psutil.STATUS_ZOMBIE])


async def test_running_function_keeps_its_end(session: Session, tmp_path: Path, until: Until) -> None:
    """A running function cannot be stopped, and keeps its own end."""
    held = blockers(tmp_path / "gate")
    await session.submit_tasks(held)
    await until(lambda: all(task.state is TaskState.RUNNING for task in held))
    results = await session.cancel_tasks(held)
    assert set(results.values()) == {CancelResult.CANNOT_STOP}
    (tmp_path / "gate").touch()
    await session.wait_tasks(held, timeout=90)
    assert {task.state for task in held} == {TaskState.DONE}


async def test_tasks_behind_running_one_never_run(cluster: LocalCluster, tmp_path: Path, until: Until) -> None:
    """Canceled tasks behind the running one of their batch never run."""

    def work(path: str, gate: str | None) -> None:
        import pathlib
        import time

        with pathlib.Path(path).open("a") as file:
            file.write("x")
        while gate and not pathlib.Path(gate).exists():
            time.sleep(0.01)

    gate = tmp_path / "gate"
    backend = DaskExecutionBackend(cluster=cluster, batching={"target": 1000.0})
    async with Session(backends=[backend], work_dir=tmp_path) as session:
        known = [ComputeTask(function=work, args=(os.devnull, None)) for _ in range(400)]
        await session.submit_tasks(known)
        await session.wait_tasks(known, timeout=90)
        tasks = [ComputeTask(function=work, args=(str(tmp_path / f"mark{i}"), str(gate))) for i in range(60)]
        await session.submit_tasks(tasks)
        await until(lambda: sum(task.state is TaskState.RUNNING for task in tasks) == 2)
        await asyncio.sleep(0.1)
        results = await session.cancel_tasks(tasks)
        assert sorted(results.values()) == [CancelResult.CANNOT_STOP] * 2 + [CancelResult.NEVER_STARTED] * 58
        gate.touch()
        await session.wait_tasks(tasks, timeout=90)
    assert len(list(tmp_path.glob("mark*"))) == 2


async def test_exception_stops_running_tasks(cluster: LocalCluster, tmp_path: Path, until: Until) -> None:
    """Leaving by an exception stops what runs on a cluster of the user's."""
    task = ComputeTask(executable="sleep", arguments=["3044"])
    held = ComputeTask(function=time.sleep, args=(1.0,))
    waiting = [marker(tmp_path / "mark") for _ in range(5)]

    async def leave() -> None:
        async with Session(backends=[DaskExecutionBackend(cluster=cluster)], work_dir=tmp_path) as session:
            await session.submit_tasks([task, held])
            await until(lambda: task.state is TaskState.RUNNING and held.state is TaskState.RUNNING)
            await session.submit_tasks(waiting)
            raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="the user's own"):
        await leave()
    assert task.state is TaskState.CANCELED
    assert all(each.is_final for each in (held, *waiting))
    await until(lambda: not cluster.scheduler.tasks)
    await until(lambda: not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "3044"]])
    await asyncio.sleep(1.0)
    assert not (tmp_path / "mark").exists()


async def test_no_batch_begins_after_close(cluster: LocalCluster, tmp_path: Path, until: Until) -> None:
    """Short executables share batches, and after the close none of a batch begins."""
    script = 'echo x >> "$1/ran"; while [ -e "$1/shut" ]; do sleep 0.05; done'

    def echoes(count: int) -> list[ComputeTask]:
        arguments = ["-c", script, "sh", str(tmp_path)]
        return [ComputeTask(executable="/bin/sh", arguments=arguments) for _ in range(count)]

    backend = DaskExecutionBackend(cluster=cluster)
    session = Session(backends=[backend], work_dir=tmp_path)
    await session.start()
    known = echoes(200)
    await session.submit_tasks(known)
    await session.wait_tasks(known, timeout=90)
    (tmp_path / "shut").touch()
    tasks = echoes(60)
    await session.submit_tasks(tasks)
    await until(lambda: sum(task.state is TaskState.RUNNING for task in tasks) == 2)
    assert max(len(task._batch) for task in tasks if task._batch is not None) > 1
    await session.close(wait=False)
    ran = len((tmp_path / "ran").read_text().split())
    assert ran == 202
    assert {task.state for task in tasks} == {TaskState.CANCELED}
    await asyncio.sleep(0.5)  # for executables that should not begin
    assert len((tmp_path / "ran").read_text().split()) == ran
