"""Which cluster the backend uses, what it closes and what it leaves alone; workers that come and go."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster
from rhapsody.api import (
    BackendConfigurationError,
    BackendStartError,
    ComputeTask,
    Resources,
    Session,
    TaskState,
    UnsupportedError,
    get_backend,
)
from rhapsody.backends import DaskExecutionBackend

pytestmark = [pytest.mark.engine("dask"), pytest.mark.timeout(240)]
Until = Callable[..., Awaitable[None]]
THREADS: dict[str, Any] = {"processes": False, "threads_per_worker": 1}  # quick to start; the scheduler is the real one


async def runs(backend: DaskExecutionBackend, work_dir: Path, count: int = 20) -> None:
    async with Session(backends=[backend], work_dir=work_dir) as session:
        tasks = [ComputeTask(function=abs, args=(-i,)) for i in range(count)]
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks, timeout=60)
        assert [task.return_value for task in tasks] == list(range(count))


async def test_another_core_is_warned_of(tmp_path: Path, until: Until) -> None:
    """A worker with another rhapsody-core is warned of with both versions, there at the start or joining later."""
    other = tmp_path / "other"
    metadata = other / "rhapsody_core-9.8.7.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: rhapsody-core\nVersion: 9.8.7\n")
    seen: list[str] = []

    def join(address: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--no-dashboard"]
        environment = {**os.environ, "PYTHONPATH": str(other)}
        return subprocess.Popen(
            [*command, "--local-directory", str(tmp_path)], env=environment, stderr=subprocess.DEVNULL
        )

    workers: list[subprocess.Popen[bytes]] = []
    with (
        warnings.catch_warnings(record=True) as caught,
        LocalCluster(n_workers=0, processes=False, protocol="tcp://", dashboard_address=":0") as cluster,
    ):
        warnings.simplefilter("always")
        try:
            workers.append(join(cluster.scheduler_address))
            await until(lambda: cluster.scheduler.workers)
            async with Session(backends=[DaskExecutionBackend(cluster=cluster.scheduler_address)], work_dir=tmp_path):
                for count in (1, 2):
                    await until(lambda count=count: _cores(caught, seen) == count)
                    if count == 1:
                        workers.append(join(cluster.scheduler_address))
        finally:
            for process in workers:
                process.terminate()
                process.wait(30)
    assert all(f"rhapsody-core {version('rhapsody-core')} here and 9.8.7 on worker tcp://" in text for text in seen)


def _cores(caught: Sequence[warnings.WarningMessage], seen: list[str]) -> int:
    """Return how many warnings name rhapsody-core; keeps their texts."""
    seen[:] = [text for warning in caught if "rhapsody-core" in (text := str(warning.message))]
    return len(seen)


def test_backend_is_found_by_name() -> None:
    """The backend is found by its name."""
    backend = get_backend("dask", resources={"n_workers": 1}, name="here")
    assert type(backend) is DaskExecutionBackend
    assert backend.name == "here"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"resources": {"n_worker": 1}}, r"'n_worker'.*did you mean n_workers"),
        ({"resources": {"loop": None}}, "which loop"),
        ({"resources": 4}, "resources must map"),
        ({"resources": {"n_workers": "two"}}, "n_workers must be an integer"),
        ({"resources": {"threads_per_worker": -1}}, "threads_per_worker must be an integer"),
        ({"cluster": 8786}, "cluster must be"),
        ({"client": "tcp://127.0.0.1:8786"}, "client must be"),
        ({"cluster": "tcp://127.0.0.1:8786", "resources": {"n_workers": 1}}, "resources and cluster were given"),
        ({"worker_timeout": 0}, "worker_timeout must be above 0"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_unusable_argument_is_refused(arguments: dict[str, Any], problem: str) -> None:
    """An unusable argument is an error where it is written."""
    with pytest.raises(BackendConfigurationError, match=problem):
        DaskExecutionBackend(**arguments)


def test_cluster_keywords_are_taken() -> None:
    """Every keyword of LocalCluster and its workers is taken."""
    DaskExecutionBackend(resources={"n_workers": 2, "memory_limit": "1GiB", "nthreads": 1, "local_directory": "/tmp"})


async def test_nothing_starts_before_need(leaves_nothing: None) -> None:
    """Nothing is started before the session needs it."""
    DaskExecutionBackend(resources={"n_workers": 2})


async def test_refused_value_is_a_start_error(tmp_path: Path) -> None:
    """A value that LocalCluster refuses is a start error that shows it."""
    with pytest.raises(BackendStartError, match="smoke"):
        await runs(DaskExecutionBackend(resources={"protocol": "smoke", **THREADS}), tmp_path)


async def test_own_cluster_is_closed(tmp_path: Path, until: Until) -> None:
    """A cluster of the backend's own is closed with everything in it."""
    import psutil

    before = set(psutil.Process().children(recursive=True))
    await runs(DaskExecutionBackend(resources={"n_workers": 2, "threads_per_worker": 1}), tmp_path)

    def left() -> list[psutil.Process]:  # multiprocessing keeps its resource tracker for the life of the program
        mine = set(psutil.Process().children(recursive=True)) - before
        return [child for child in mine if "resource_tracker" not in " ".join(child.cmdline())]

    await until(lambda: not left(), 10)
    assert not list(tmp_path.iterdir())


async def test_environment_is_left_as_found(tmp_path: Path) -> None:
    """What nannies set for their workers (one thread each for BLAS) does not stay in the program's environment."""

    def environment() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith("__DASK")}

    before = environment()
    backend = DaskExecutionBackend(resources={"n_workers": 1, "threads_per_worker": 1})
    async with Session(backends=[backend], work_dir=tmp_path) as session:
        task = ComputeTask(function=os.getenv, args=("OMP_NUM_THREADS",))
        await session.submit_tasks([task])
        await task
        assert task.return_value == "1"
        assert environment() == before
    assert environment() == before


async def test_scratch_folders_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scratch folder goes with the cluster, and so do those of killed scripts."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = subprocess.Popen(["/bin/true"])
    ended.wait()
    (tmp_path / f"rhapsody-dask-{ended.pid}-abc" / "worker-1").mkdir(parents=True)
    (tmp_path / "rhapsody-dask-1-abc").mkdir()  # of a program that lives
    backend = DaskExecutionBackend(resources={"n_workers": 1, **THREADS})
    async with Session(backends=[backend], work_dir=tmp_path) as session:
        task = ComputeTask(function=abs, args=(-1,))
        await session.submit_tasks([task])
        await session.wait_tasks([task], timeout=90)
        assert len(list(tmp_path.iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["rhapsody-dask-1-abc"]


async def test_users_sync_cluster_stays_open(tmp_path: Path) -> None:
    """A synchronous cluster of the user's is left open."""
    with LocalCluster(n_workers=1, dashboard_address=":0", **THREADS) as cluster:
        await runs(DaskExecutionBackend(cluster=cluster), tmp_path)
        await runs(DaskExecutionBackend(cluster=cluster), tmp_path)
        assert cluster.status.name == "running"
        assert not cluster.scheduler.tasks


async def test_users_async_cluster_stays_open(tmp_path: Path) -> None:
    """An asynchronous cluster of the user's is left open."""
    async with LocalCluster(n_workers=1, dashboard_address=":0", asynchronous=True, **THREADS) as cluster:
        await runs(DaskExecutionBackend(cluster=cluster), tmp_path)
        assert cluster.status.name == "running"


async def test_users_sync_client_stays_open(tmp_path: Path) -> None:
    """A synchronous client of the user's is left open."""
    with (
        LocalCluster(n_workers=1, dashboard_address=":0", **THREADS) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        await runs(DaskExecutionBackend(client=client), tmp_path)
        assert client.submit(abs, -3).result(timeout=90) == 3


async def test_users_async_client_stays_open(tmp_path: Path) -> None:
    """An asynchronous client of the user's is left open."""
    async with (
        LocalCluster(n_workers=1, dashboard_address=":0", asynchronous=True, **THREADS) as cluster,
        Client(cluster, asynchronous=True, set_as_default=False) as client,
    ):
        await runs(DaskExecutionBackend(client=client), tmp_path)
        assert await client.submit(abs, -3) == 3


async def test_scheduler_address_is_enough(tmp_path: Path) -> None:
    """The address of a running scheduler is enough."""
    with LocalCluster(n_workers=1, dashboard_address=":0", protocol="tcp", **THREADS) as cluster:
        await runs(DaskExecutionBackend(cluster=cluster.scheduler_address), tmp_path)
        assert cluster.status.name == "running"


async def test_closed_client_is_refused(tmp_path: Path) -> None:
    """A closed client is refused with its state."""
    with LocalCluster(n_workers=1, dashboard_address=":0", **THREADS) as cluster:
        client = Client(cluster, set_as_default=False)
        await asyncio.to_thread(client.close)
        with pytest.raises(BackendStartError, match="closed"):
            await runs(DaskExecutionBackend(client=client), tmp_path)


async def test_sessions_on_one_cluster(tmp_path: Path) -> None:
    """Two sessions on one cluster do not receive each other's events."""
    with LocalCluster(n_workers=2, dashboard_address=":0", **THREADS) as cluster:
        await asyncio.gather(
            runs(DaskExecutionBackend(cluster=cluster), tmp_path / "a", 300),
            runs(DaskExecutionBackend(cluster=cluster), tmp_path / "b", 300),
        )


async def test_tasks_run_while_loop_is_blocked(tmp_path: Path, until: Until) -> None:
    """Tasks run on while the user's own loop is blocked."""
    backend = DaskExecutionBackend(resources={"n_workers": 2, **THREADS})
    async with Session(backends=[backend], work_dir=tmp_path) as session:
        tasks = [ComputeTask(function=time.time) for _ in range(8)]
        await session.submit_tasks(tasks)
        time.sleep(1.0)  # what a user's computation does to the loop
        unblocked = time.time()
        await session.wait_tasks(tasks, timeout=90)
        assert all(task.return_value < unblocked for task in tasks)


async def test_adaptive_cluster(tmp_path: Path, until: Until) -> None:
    """An adaptive cluster grows with what waits and shrinks when all is done."""
    with LocalCluster(n_workers=0, dashboard_address=":0", **THREADS) as cluster:
        cluster.adapt(minimum=0, maximum=3, interval="50ms", target_duration="100ms", wait_count=2)
        async with Session(backends=[DaskExecutionBackend(cluster=cluster)], work_dir=tmp_path) as session:
            tasks = [ComputeTask(function=time.sleep, args=(0.2,)) for _ in range(30)]
            await session.submit_tasks(tasks)
            await until(lambda: len(cluster.scheduler.workers) == 3)
            await until(lambda: sum(task.state is TaskState.RUNNING for task in tasks) == 3)
            await session.wait_tasks(tasks, timeout=60)
            assert {task.state for task in tasks} == {TaskState.DONE}
            await until(lambda: len(cluster.scheduler.workers) == 0)
            late = ComputeTask(function=abs, args=(-1,))
            await session.submit_tasks([late])
            await session.wait_tasks([late], timeout=60)
            assert late.return_value == 1
            never = ComputeTask(function=abs, args=(-1,), resources=Resources(gpus_per_rank=1))
            await session.submit_tasks([never])
            said = session.explain(never)
            assert said.startswith(f"task {never.uid} waits for the cluster to grow: no worker has GPU=1")
            await session.cancel_tasks([never])


async def test_resource_of_a_joining_worker(tmp_path: Path, until: Until) -> None:
    """A resource counts from when a worker that offers it joins."""
    with LocalCluster(n_workers=1, dashboard_address=":0", **THREADS) as cluster:
        async with Session(backends=[DaskExecutionBackend(cluster=cluster)], work_dir=tmp_path) as session:
            probe = [ComputeTask(function=abs, args=(-1,))]
            await session.submit_tasks(probe)
            await session.wait_tasks(probe, timeout=90)
            options = {"resources": {"LICENCE": 1}}
            with pytest.raises(UnsupportedError, match="no worker has LICENCE=1"):
                await session.submit_tasks([ComputeTask(function=abs, args=(-1,), backend_options=options)])
            cluster.worker_spec["licensed"] = {
                "cls": cluster.new_spec["cls"],
                "options": {**cluster.new_spec["options"], "resources": {"LICENCE": 1}},
            }
            await asyncio.to_thread(cluster.sync, cluster._correct_state)
            await until(lambda: len(cluster.scheduler.workers) == 2)
            await asyncio.sleep(0.2)  # the session receives it
            task = ComputeTask(function=abs, args=(-1,), backend_options=options)
            await session.submit_tasks([task])
            await session.wait_tasks([task], timeout=90)
            assert task.return_value == 1


async def test_version_mismatch_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other versions on the workers are a warning that names both."""
    from rhapsody_dask import workers

    ours = {"packages": {"python": "3.99.1.final.0", "cloudpickle": "9.9.9"}}
    monkeypatch.setattr(workers, "get_versions", lambda: ours)
    with pytest.warns(RuntimeWarning) as warned:
        await runs(DaskExecutionBackend(resources={"n_workers": 1, **THREADS}), tmp_path)
    texts = " ".join(str(warning.message) for warning in warned)
    assert "python 3.99.1.final.0 here and 3." in texts
    assert "cloudpickle 9.9.9 here and" in texts


async def test_default_client_is_kept(tmp_path: Path) -> None:
    """A Dask client of the user's own stays the default one."""
    from distributed import default_client

    with LocalCluster(n_workers=1, dashboard_address=":0", **THREADS) as cluster, Client(cluster) as client:
        async with Session(backends=[DaskExecutionBackend(resources={"n_workers": 1, **THREADS})]) as session:
            tasks = [ComputeTask(function=os.getpid)]
            await session.submit_tasks(tasks)
            await session.wait_tasks(tasks, timeout=90)
            assert default_client() is client
        assert default_client() is client


async def test_slurm_cluster_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SLURM cluster is taken like any other."""
    jobqueue = pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is optional: clusters behind a queue")
    cluster = jobqueue.SLURMCluster(
        cores=4,
        memory="8GB",
        queue="short",
        account="me",
        interface="lo",
        scheduler_options={"dashboard_address": ":0"},
        log_directory=str(tmp_path),
    )
    with cluster:  # without workers it submits no job
        assert "#SBATCH -p short" in cluster.job_script()
        async with Session(backends=[DaskExecutionBackend(cluster=cluster)], work_dir=tmp_path) as session:
            await session.submit_tasks([])
        assert cluster.status.name == "running"
