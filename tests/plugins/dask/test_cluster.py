"""Which cluster the backend uses, what it closes and what it leaves alone; workers that come and go."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster
from rhapsody.api import (
    BackendConfigurationError,
    BackendStartError,
    ComputeTask,
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


def test_the_backend_is_found_by_its_name() -> None:
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
def test_an_unusable_argument_is_an_error_where_it_is_written(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(BackendConfigurationError, match=problem):
        DaskExecutionBackend(**arguments)


def test_every_keyword_of_a_local_cluster_and_its_workers_is_taken() -> None:
    DaskExecutionBackend(resources={"n_workers": 2, "memory_limit": "1GiB", "nthreads": 1, "local_directory": "/tmp"})


async def test_nothing_is_started_before_the_session_needs_it(leaves_nothing: None) -> None:
    DaskExecutionBackend(resources={"n_workers": 2})


async def test_a_value_that_local_cluster_refuses_is_a_start_error_that_shows_it(tmp_path: Path) -> None:
    with pytest.raises(BackendStartError, match="smoke"):
        await runs(DaskExecutionBackend(resources={"protocol": "smoke", **THREADS}), tmp_path)


async def test_a_cluster_of_its_own_is_closed_with_everything_in_it(tmp_path: Path, until: Until) -> None:
    import psutil

    before = set(psutil.Process().children(recursive=True))
    await runs(DaskExecutionBackend(resources={"n_workers": 2, "threads_per_worker": 1}), tmp_path)

    def left() -> list[psutil.Process]:  # multiprocessing keeps its resource tracker for the life of the program
        mine = set(psutil.Process().children(recursive=True)) - before
        return [child for child in mine if "resource_tracker" not in " ".join(child.cmdline())]

    await until(lambda: not left(), 10)
    assert not list(tmp_path.iterdir())


async def test_its_scratch_folder_goes_with_it_and_those_of_killed_programs_do_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


async def test_a_synchronous_cluster_of_the_users_is_left_open(tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, dashboard_address=":0", **THREADS) as cluster:
        await runs(DaskExecutionBackend(cluster=cluster), tmp_path)
        await runs(DaskExecutionBackend(cluster=cluster), tmp_path)
        assert cluster.status.name == "running"
        assert not cluster.scheduler.tasks


async def test_an_asynchronous_cluster_of_the_users_is_left_open(tmp_path: Path) -> None:
    async with LocalCluster(n_workers=1, dashboard_address=":0", asynchronous=True, **THREADS) as cluster:
        await runs(DaskExecutionBackend(cluster=cluster), tmp_path)
        assert cluster.status.name == "running"


async def test_a_synchronous_client_of_the_users_is_left_open(tmp_path: Path) -> None:
    with (
        LocalCluster(n_workers=1, dashboard_address=":0", **THREADS) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        await runs(DaskExecutionBackend(client=client), tmp_path)
        assert client.submit(abs, -3).result(timeout=90) == 3


async def test_an_asynchronous_client_of_the_users_is_left_open(tmp_path: Path) -> None:
    async with (
        LocalCluster(n_workers=1, dashboard_address=":0", asynchronous=True, **THREADS) as cluster,
        Client(cluster, asynchronous=True, set_as_default=False) as client,
    ):
        await runs(DaskExecutionBackend(client=client), tmp_path)
        assert await client.submit(abs, -3) == 3


async def test_an_address_of_a_running_scheduler_is_enough(tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, dashboard_address=":0", protocol="tcp", **THREADS) as cluster:
        await runs(DaskExecutionBackend(cluster=cluster.scheduler_address), tmp_path)
        assert cluster.status.name == "running"


async def test_a_closed_client_is_refused_with_its_state(tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, dashboard_address=":0", **THREADS) as cluster:
        client = Client(cluster, set_as_default=False)
        await asyncio.to_thread(client.close)
        with pytest.raises(BackendStartError, match="closed"):
            await runs(DaskExecutionBackend(client=client), tmp_path)


async def test_two_sessions_on_one_cluster_do_not_hear_each_other(tmp_path: Path) -> None:
    with LocalCluster(n_workers=2, dashboard_address=":0", **THREADS) as cluster:
        await asyncio.gather(
            runs(DaskExecutionBackend(cluster=cluster), tmp_path / "a", 300),
            runs(DaskExecutionBackend(cluster=cluster), tmp_path / "b", 300),
        )


async def test_tasks_run_on_while_the_users_own_loop_is_blocked(tmp_path: Path, until: Until) -> None:
    backend = DaskExecutionBackend(resources={"n_workers": 2, **THREADS})
    async with Session(backends=[backend], work_dir=tmp_path) as session:
        tasks = [ComputeTask(function=time.time) for _ in range(8)]
        await session.submit_tasks(tasks)
        time.sleep(1.0)  # what a user's computation does to the loop
        unblocked = time.time()
        await session.wait_tasks(tasks, timeout=90)
        assert all(task.return_value < unblocked for task in tasks)


async def test_an_adaptive_cluster_grows_with_what_waits_and_shrinks_when_all_is_done(
    tmp_path: Path, until: Until
) -> None:
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


async def test_a_resource_counts_from_when_a_worker_that_offers_it_joins(tmp_path: Path, until: Until) -> None:
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
            await asyncio.sleep(0.2)  # the session hears of it
            task = ComputeTask(function=abs, args=(-1,), backend_options=options)
            await session.submit_tasks([task])
            await session.wait_tasks([task], timeout=90)
            assert task.return_value == 1


async def test_other_versions_on_the_workers_are_a_warning_that_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rhapsody_dask import workers

    ours = {"packages": {"python": "3.99.1.final.0", "cloudpickle": "9.9.9"}}
    monkeypatch.setattr(workers, "get_versions", lambda: ours)
    with pytest.warns(RuntimeWarning) as told:
        await runs(DaskExecutionBackend(resources={"n_workers": 1, **THREADS}), tmp_path)
    texts = " ".join(str(warning.message) for warning in told)
    assert "python 3.99.1.final.0 here and 3." in texts
    assert "cloudpickle 9.9.9 here and" in texts


async def test_a_dask_client_of_the_users_own_stays_the_default_one(tmp_path: Path) -> None:
    from distributed import default_client

    with LocalCluster(n_workers=1, dashboard_address=":0", **THREADS) as cluster, Client(cluster) as client:
        async with Session(backends=[DaskExecutionBackend(resources={"n_workers": 1, **THREADS})]) as session:
            tasks = [ComputeTask(function=os.getpid)]
            await session.submit_tasks(tasks)
            await session.wait_tasks(tasks, timeout=90)
            assert default_client() is client
        assert default_client() is client


async def test_a_slurm_cluster_is_taken_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
