"""Workers that die, schedulers that go away, clusters without workers: every task still ends, and none runs twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask.config
import pytest
from distributed import Client, LocalCluster
from rhapsody.api import (
    BackendLostError,
    BackendStartError,
    ComputeTask,
    Session,
    SubmitError,
    TaskState,
    UnsupportedError,
    WorkerLostError,
)
from rhapsody.backends import DaskExecutionBackend

pytestmark = [pytest.mark.engine("dask"), pytest.mark.timeout(240)]
Until = Callable[..., Awaitable[None]]


@pytest.fixture(scope="module")
def fragile() -> Iterator[LocalCluster]:
    """A cluster whose workers are killed; the nannies start new ones."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit="500MiB") as cluster:
        yield cluster


@pytest.fixture
async def whole(fragile: LocalCluster, until: Until) -> LocalCluster:
    """The fragile cluster, with both workers: on a busy machine a nanny may give up the worker that it starts."""
    try:
        await until(lambda: len(fragile.scheduler.workers) == 2, 45)
    except AssertionError:
        fragile.scale(0)
        await until(lambda: not fragile.workers)
        fragile.scale(2)
        await until(lambda: len(fragile.scheduler.workers) == 2)
    return fragile


@pytest.fixture
async def on_fragile(whole: LocalCluster, tmp_path: Path) -> AsyncIterator[Session]:
    async with Session(backends=[DaskExecutionBackend(cluster=whole)], work_dir=tmp_path) as session:
        yield session


def log_then_wait(path: str, gate: str | None) -> None:
    """Say that and where it runs, then wait for the gate. Travels by value, as part of the closures below."""
    import os
    import pathlib
    import time

    with pathlib.Path(path).open("a") as file:
        file.write(f"{os.getpid()}\n")
    while gate and not pathlib.Path(gate).exists():
        time.sleep(0.01)


def task_of(path: Path, gate: Path | None = None, **fields: Any) -> ComputeTask:
    work = log_then_wait
    return ComputeTask(function=lambda path, gate: work(path, gate), args=(str(path), gate and str(gate)), **fields)


def pids(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


async def test_death_fails_only_running_task(on_fragile: Session, tmp_path: Path, until: Until) -> None:
    """A worker killed under a task fails that task and no other."""
    gate = tmp_path / "gate"
    doomed, other = task_of(tmp_path / "doomed", gate), task_of(tmp_path / "other", gate)
    waiting = [task_of(tmp_path / f"waiting{i}") for i in range(6)]
    await on_fragile.submit_tasks([doomed, other])
    await until(lambda: pids(tmp_path / "doomed") and pids(tmp_path / "other"))
    await on_fragile.submit_tasks(waiting)
    await asyncio.sleep(0.1)  # some of them wait at the worker that is killed now
    os.kill(pids(tmp_path / "doomed")[0], signal.SIGKILL)
    await until(lambda: doomed.is_final)
    gate.touch()
    await on_fragile.wait_tasks([other, *waiting], timeout=60)
    assert isinstance(doomed.exception, WorkerLostError)
    assert socket.gethostname() in str(doomed.exception)
    assert {task.state for task in (other, *waiting)} == {TaskState.DONE}
    for name in ("doomed", "other", *(f"waiting{i}" for i in range(6))):
        assert len(pids(tmp_path / name)) == 1, f"{name} ran more than once"


async def test_idle_death_costs_nothing(
    on_fragile: Session, fragile: LocalCluster, tmp_path: Path, until: Until
) -> None:
    """A worker killed while idle costs nothing."""
    (probe,) = first = [ComputeTask(function=os.getpid)]
    await on_fragile.submit_tasks(first)
    await on_fragile.wait_tasks(first, timeout=90)
    os.kill(probe.return_value, signal.SIGKILL)
    await until(lambda: len(fragile.scheduler.workers) == 1)
    tasks = [ComputeTask(function=os.getpid) for _ in range(20)]
    await on_fragile.submit_tasks(tasks)
    await on_fragile.wait_tasks(tasks, timeout=60)
    assert {task.state for task in tasks} == {TaskState.DONE}


async def test_lost_batch_runs_on_elsewhere(whole: LocalCluster, tmp_path: Path, until: Until) -> None:
    """Of a lost batch only the task that ran fails; those behind it run elsewhere."""

    def work(path: str, gate: str | None) -> None:
        import os
        import pathlib
        import time

        with pathlib.Path(path).open("a") as file:
            file.write(f"{os.getpid()}\n")
        while gate and not pathlib.Path(gate).exists():
            time.sleep(0.01)

    gate = tmp_path / "gate"
    backend = DaskExecutionBackend(cluster=whole, batching={"target": 1000.0})
    async with Session(backends=[backend], work_dir=tmp_path) as session:
        known = [ComputeTask(function=work, args=(os.devnull, None)) for _ in range(400)]
        await session.submit_tasks(known)
        await session.wait_tasks(known, timeout=90)
        tasks = [
            ComputeTask(function=work, args=(str(tmp_path / f"mark{i}"), str(gate) if i == 5 else None))
            for i in range(40)
        ]
        await session.submit_tasks(tasks)
        await until(lambda: pids(tmp_path / "mark5"))
        await until(lambda: all(task.state is TaskState.DONE for task in tasks[:5]))
        os.kill(pids(tmp_path / "mark5")[0], signal.SIGKILL)
        await session.wait_tasks(tasks, timeout=60)
    assert [i for i, task in enumerate(tasks) if task.state is not TaskState.DONE] == [5]
    assert isinstance(tasks[5].exception, WorkerLostError)
    assert all(len(pids(tmp_path / f"mark{i}")) == 1 for i in range(40))


async def test_lost_task_is_retried(on_fragile: Session, tmp_path: Path, until: Until) -> None:
    """A lost task runs again elsewhere if it may."""
    gate = tmp_path / "gate"
    task = task_of(tmp_path / "log", gate, backend_options={"retries": 1})
    await on_fragile.submit_tasks([task])
    await until(lambda: len(pids(tmp_path / "log")) == 1)
    os.kill(pids(tmp_path / "log")[0], signal.SIGKILL)
    await until(lambda: len(pids(tmp_path / "log")) == 2)
    os.kill(pids(tmp_path / "log")[1], signal.SIGKILL)
    await until(lambda: task.is_final)
    assert isinstance(task.exception, WorkerLostError)
    await asyncio.sleep(0.5)
    assert len(pids(tmp_path / "log")) == 2


async def test_executable_ends_with_its_worker(on_fragile: Session, tmp_path: Path, until: Until) -> None:
    """An executable ends with the worker that ran it."""
    path = tmp_path / "pids"
    task = ComputeTask(executable=f"echo $PPID $$ > {path}; sleep 3055", shell=True)
    await on_fragile.submit_tasks([task])
    await until(lambda: len(pids(path)) == 2)
    worker, program = pids(path)
    await asyncio.sleep(0.3)  # the worker has reported the executable to its guard by now
    os.kill(worker, signal.SIGKILL)
    await until(lambda: task.is_final)
    assert isinstance(task.exception, WorkerLostError)
    await until(lambda: not Path(f"/proc/{program}").exists() or "Z" in Path(f"/proc/{program}/stat").read_text())


async def test_out_of_memory_fails_the_task(on_fragile: Session) -> None:
    """A task that takes all memory fails, and the next one runs."""

    def eat() -> None:
        import time

        held = []
        while True:
            held.append(b"x" * 20_000_000)
            time.sleep(0.01)

    greedy = ComputeTask(function=eat)
    await on_fragile.submit_tasks([greedy])
    await on_fragile.wait_tasks([greedy], timeout=60)
    assert isinstance(greedy.exception, WorkerLostError)
    assert "memory" in str(greedy.exception)
    modest = ComputeTask(function=len, args=("ab",))
    await on_fragile.submit_tasks([modest])
    await on_fragile.wait_tasks([modest], timeout=60)
    assert modest.return_value == 2


async def test_cluster_without_workers(tmp_path: Path) -> None:
    """A cluster without workers is an error after the deadline."""
    backend = DaskExecutionBackend(resources={"n_workers": 0}, worker_timeout=0.5)
    async with Session(backends=[backend], work_dir=tmp_path) as session:
        tasks = [ComputeTask(function=len, args=("ab",)) for _ in range(100)]
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks, timeout=90)
        assert all(isinstance(task.exception, BackendLostError) for task in tasks)
        assert "no worker has joined" in str(tasks[0].exception)
        assert "0.5 seconds" in str(tasks[0].exception)


async def test_vanished_resource_fails_its_tasks(tmp_path: Path, until: Until) -> None:
    """A resource that leaves with its worker fails its tasks after the deadline."""
    with LocalCluster(n_workers=1, processes=False, dashboard_address=":0", resources={"LICENCE": 1}) as cluster:
        backend = DaskExecutionBackend(cluster=cluster, worker_timeout=0.5)
        async with Session(backends=[backend], work_dir=tmp_path) as session:
            held = ComputeTask(function=time.sleep, args=(1.0,), backend_options={"resources": {"LICENCE": 1}})
            task = ComputeTask(function=len, args=("ab",), backend_options={"resources": {"LICENCE": 1}})
            await session.submit_tasks([held, task])
            await until(lambda: held.state is TaskState.RUNNING)
            cluster.worker_spec["plain"] = {
                "cls": cluster.new_spec["cls"],
                "options": {**cluster.new_spec["options"], "resources": {}},
            }
            del cluster.worker_spec[0]
            await asyncio.to_thread(cluster.sync, cluster._correct_state)
            await session.wait_tasks([held, task], timeout=90)
            assert isinstance(task.exception, UnsupportedError)
            assert "LICENCE=1" in str(task.exception)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address and process of a scheduler that has one worker, each a program as on a cluster."""
    file = tmp_path / "scheduler.json"
    with ExitStack() as stack:

        def start(*arguments: str) -> subprocess.Popen[bytes]:
            process = stack.enter_context(
                subprocess.Popen([sys.executable, "-m", *arguments], stderr=subprocess.DEVNULL)
            )
            stack.callback(process.kill)
            return process

        scheduler = start(
            "distributed.cli.dask_scheduler",
            *("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--dashboard-address", ":0"),
            *("--scheduler-file", str(file)),
        )
        start("distributed.cli.dask_worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-nanny")
        deadline = time.monotonic() + 30
        while not file.exists() or not file.read_text().endswith("}"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield json.loads(file.read_text())["address"], scheduler


async def test_killed_scheduler_fails_tasks(
    processes: tuple[str, subprocess.Popen[bytes]], tmp_path: Path, until: Until
) -> None:
    """A scheduler that is killed fails what it held and what waited."""
    address, scheduler = processes
    async with Session(backends=[DaskExecutionBackend(cluster=address)], work_dir=tmp_path) as session:
        tasks = [ComputeTask(function=time.sleep, args=(60,)) for _ in range(300)]
        await session.submit_tasks(tasks)
        await until(lambda: tasks[0].state is TaskState.RUNNING)
        scheduler.kill()
        await session.wait_tasks(tasks, timeout=90)
        assert {type(task.exception) for task in tasks} == {BackendLostError}
        assert "scheduler" in str(tasks[-1].exception)


async def test_closed_client_fails_the_rest(whole: LocalCluster, tmp_path: Path, until: Until) -> None:
    """A client closed by its owner fails what is left."""
    client = Client(whole, set_as_default=False)
    async with Session(backends=[DaskExecutionBackend(client=client)], work_dir=tmp_path) as session:
        tasks = [ComputeTask(function=time.sleep, args=(1,)) for _ in range(30)]
        await session.submit_tasks(tasks)
        await until(lambda: tasks[0].state is TaskState.RUNNING)
        await asyncio.to_thread(client.close)
        await session.wait_tasks(tasks, timeout=90)
        assert isinstance(tasks[-1].exception, BackendLostError)
        assert "client" in str(tasks[-1].exception)
    assert {task.is_final for task in tasks} == {True}


async def test_idle_closed_client_fails_next_task(whole: LocalCluster, tmp_path: Path) -> None:
    """A client closed while nothing runs fails the next task."""
    client = Client(whole, set_as_default=False)
    async with Session(backends=[DaskExecutionBackend(client=client)], work_dir=tmp_path) as session:
        (probe,) = first = [ComputeTask(function=len, args=("ab",))]
        await session.submit_tasks(first)
        await session.wait_tasks(first, timeout=60)
        assert probe.return_value == 2
        await asyncio.to_thread(client.close)
        late = ComputeTask(function=len, args=("ab",))
        try:
            await session.submit_tasks([late])
        except BackendLostError:  # it was noticed before
            return
        await session.wait_tasks([late], timeout=90)
        assert isinstance(late.exception, BackendLostError | SubmitError)


async def test_dead_address_is_named(
    tmp_path: Path,
) -> None:
    """An address that nobody listens on is an error that names it."""
    with socket.socket() as taken, dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can have the port
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(BackendStartError, match=address):
            async with Session(backends=[DaskExecutionBackend(cluster=address)], work_dir=tmp_path) as session:
                await session.submit_tasks([ComputeTask(function=len, args=("ab",))])


async def test_retired_workers_batch_runs_once(
    on_fragile: Session, fragile: LocalCluster, tmp_path: Path, until: Until
) -> None:
    """A batch of a worker that is retired does not run twice."""
    gate = tmp_path / "gate"
    task = task_of(tmp_path / "log", gate)
    await on_fragile.submit_tasks([task])
    await until(lambda: pids(tmp_path / "log"))
    with Client(fragile, set_as_default=False) as client:
        (busy,) = [address for address, keys in client.processing().items() if keys]
        await asyncio.to_thread(client.retire_workers, [busy])
    await until(lambda: task.is_final)
    gate.touch()
    assert isinstance(task.exception, WorkerLostError)
    await asyncio.sleep(0.5)
    assert len(pids(tmp_path / "log")) == 1
