"""Tasks of every kind on a real cluster of processes, and what is left on it afterwards."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from rhapsody.api import (
    ComputeTask,
    Resources,
    SerializationError,
    Session,
    TaskExecutionError,
    TaskState,
    UnsupportedError,
)
from rhapsody.backends import DaskExecutionBackend

pytestmark = [pytest.mark.engine("dask"), pytest.mark.timeout(240)]
Until = Callable[..., Awaitable[None]]


async def ends(session: Session, *tasks: ComputeTask) -> list[ComputeTask]:
    await session.submit_tasks(list(tasks))
    await session.wait_tasks(list(tasks), timeout=60)
    return list(tasks)


async def test_functions_run_in_workers(session: Session) -> None:
    """Functions run in the processes of the workers."""
    (task,) = await ends(session, ComputeTask(function=os.getpid))
    assert task.state is TaskState.DONE
    assert task.return_value != os.getpid()
    assert task.ran_on is not None
    assert str(task.return_value) in task.ran_on


async def test_coroutine_functions_are_awaited(session: Session) -> None:
    """Coroutine functions are awaited."""

    async def double(x: int) -> int:
        await asyncio.sleep(0.001)
        return 2 * x

    (task,) = await ends(session, ComputeTask(function=double, args=(4,)))
    assert task.return_value == 8


async def test_lambdas_and_closures_travel(session: Session) -> None:
    """Lambdas with keywords and closures travel."""
    offset = 5
    (task,) = await ends(session, ComputeTask(function=lambda x, *, y: x + y + offset, args=(1,), kwargs={"y": 2}))
    assert task.return_value == 8


async def test_exception_has_remote_traceback(session: Session) -> None:
    """An exception arrives with the traceback of the worker."""

    def fail() -> None:
        raise LookupError("nothing there")

    (task,) = await ends(session, ComputeTask(function=fail))
    assert task.state is TaskState.FAILED
    assert isinstance(task.exception, LookupError)
    assert "in fail" in task.exception.__notes__[-1]


async def test_unpicklable_result_fails_alone(session: Session) -> None:
    """Results that cannot travel fail their task and no other."""
    import threading

    bad, good = await ends(session, ComputeTask(function=threading.Lock), ComputeTask(function=len, args=("ab",)))
    assert isinstance(bad.exception, SerializationError)
    assert good.return_value == 2


async def test_unpicklable_argument_fails_alone(session: Session) -> None:
    """Arguments that cannot travel fail their task and no other."""
    import threading

    bad, good = await ends(
        session, ComputeTask(function=len, args=(threading.Lock(),)), ComputeTask(function=len, args=("ab",))
    )
    assert isinstance(bad.exception, SerializationError)
    assert good.return_value == 2


async def test_large_results_arrive_whole(session: Session) -> None:
    """Results larger than a report arrive whole."""
    tasks = await ends(session, *(ComputeTask(function=bytes, args=(size,)) for size in (10, 200_000, 3_000_000)))
    assert [len(task.return_value) for task in tasks] == [10, 200_000, 3_000_000]


async def test_large_arguments_do_not_warn(session: Session) -> None:
    """Arguments larger than Dask recommends travel without its warning."""
    (task,) = await ends(session, ComputeTask(function=len, args=(os.urandom(12_000_000),)))
    assert task.return_value == 12_000_000


async def test_executable_gets_its_inputs(session: Session, tmp_path: Path) -> None:
    """An executable has its arguments, input, environment and folder."""
    code = "import os, sys; print(sys.argv[1], sys.stdin.read(), os.environ['GREETING'], os.getcwd())"
    (task,) = await ends(
        session,
        ComputeTask(
            executable=sys.executable,
            arguments=["-c", code, "first"],
            stdin="typed",
            environment={"GREETING": "hello"},
            cwd=tmp_path,
        ),
    )
    assert task.stdout == f"first typed hello {tmp_path}\n"
    assert task.exit_code == 0


async def test_shell_captures_into_files(session: Session) -> None:
    """A shell expands its command and captures into files."""
    (task,) = await ends(
        session, ComputeTask(executable="echo $((6 * 7)); echo bad >&2", shell=True, capture_stdio=True)
    )
    assert task.stdout is None
    assert Path(str(task.stdout_path)).read_text() == "42\n"
    assert Path(str(task.stderr_path)).read_text() == "bad\n"


async def test_failed_executable_is_explained(session: Session) -> None:
    """An executable that fails reports its exit code and the end of its stderr."""
    (task,) = await ends(session, ComputeTask(executable="echo why >&2; exit 3", shell=True))
    assert isinstance(task.exception, TaskExecutionError)
    assert task.exit_code == 3
    assert "why" in str(task.exception)


async def test_thousands_of_tasks_in_order(session: Session) -> None:
    """Thousands of small tasks each end once, in the order of their results."""
    tasks = await ends(session, *(ComputeTask(function=abs, args=(-i,)) for i in range(3000)))
    assert [task.return_value for task in tasks] == list(range(3000))
    assert {task.attempt for task in tasks} == {1}


async def test_running_means_running(session: Session) -> None:
    """A task is RUNNING only while a worker runs it."""
    tasks = [ComputeTask(function=time.sleep, args=(0.4,)) for _ in range(5)]
    await session.submit_tasks(tasks)
    most = 0
    while not all(task.is_final for task in tasks):
        most = max(most, sum(task.state is TaskState.RUNNING for task in tasks))
        await asyncio.sleep(0.01)
    assert most == 2  # two workers of one thread


async def test_results_precede_batch_end(session: Session, tmp_path: Path, until: Until) -> None:
    """What has ended is reported while the rest of its batch runs."""

    def work(path: str | None) -> None:
        import pathlib
        import time

        while path and not pathlib.Path(path).exists():
            time.sleep(0.01)

    await ends(session, *(ComputeTask(function=work, args=(None,)) for _ in range(500)))  # now it is known to be short
    gate = tmp_path / "gate"
    quick = [ComputeTask(function=work, args=(None,)) for _ in range(60)]
    slow = [ComputeTask(function=work, args=(str(gate),)) for _ in range(2)]
    await session.submit_tasks([*quick[:30], slow[0], *quick[30:], slow[1]])
    await until(lambda: all(task.state is TaskState.RUNNING for task in slow))
    await until(lambda: all(task.is_final for task in quick[:30]))
    gate.touch()
    await session.wait_tasks([*quick, *slow], timeout=90)
    assert {task.state for task in (*quick, *slow)} == {TaskState.DONE}


async def test_tasks_go_to_named_workers(session: Session) -> None:
    """Tasks go only to the workers that they name."""
    tasks = [ComputeTask(function=os.getpid, backend_options={"workers": [1], "priority": i}) for i in range(6)]
    await ends(session, *tasks)
    assert len({task.return_value for task in tasks}) == 1


async def test_resource_is_exclusive(session: Session) -> None:
    """A resource is held by one task at a time."""
    tasks = [
        ComputeTask(function=time.sleep, args=(0.1,), backend_options={"resources": {"LICENCE": 1}}) for _ in range(6)
    ]
    await ends(session, *tasks)
    spans: dict[Any, list[tuple[float, float]]] = {}
    for task in tasks:
        assert task.started_at is not None
        assert task.ended_at is not None
        spans.setdefault(task.ran_on, []).append((task.started_at, task.ended_at))
    for times in spans.values():
        times.sort()
        assert all(ended <= started for (_, ended), (started, _) in itertools.pairwise(times))


async def test_unoffered_resource_is_refused(session: Session) -> None:
    """A resource that no worker offers is refused with what they offer."""
    with pytest.raises(UnsupportedError, match=r"no worker has TPU=1: .*LICENCE=1"):
        await session.submit_tasks([ComputeTask(function=len, backend_options={"resources": {"TPU": 1}})])


async def test_gpus_without_gpu_are_refused(session: Session) -> None:
    """GPUs are refused where no worker has one."""
    with pytest.raises(UnsupportedError, match="no worker has GPU=1"):
        await session.submit_tasks([ComputeTask(function=len, resources=Resources(gpus_per_rank=1))])


@pytest.mark.parametrize("option", ["resource", "pure", "key"])
async def test_unknown_option_is_refused(session: Session, option: str) -> None:
    """An unknown option is refused by name."""
    with pytest.raises(UnsupportedError, match=f"'{option}'.*resources"):
        await session.submit_tasks([ComputeTask(function=len, backend_options={option: 1})])


async def test_failing_task_is_retried(session: Session, tmp_path: Path) -> None:
    """A task that fails is run again as often as it may."""

    def third_time(path: str) -> int:
        import pathlib

        with pathlib.Path(path).open("a+") as file:
            file.write("x")
            file.seek(0)
            count = len(file.read())
        if count < 3:
            raise OSError("not yet")
        return count

    (task,) = await ends(
        session, ComputeTask(function=third_time, args=(str(tmp_path / "a"),), backend_options={"retries": 2})
    )
    assert task.return_value == 3
    assert task.attempt == 3
    (task,) = await ends(
        session, ComputeTask(function=third_time, args=(str(tmp_path / "b"),), backend_options={"retries": 1})
    )
    assert isinstance(task.exception, OSError)
    assert (tmp_path / "b").read_text() == "xx"


async def test_failing_executable_is_retried(session: Session, tmp_path: Path) -> None:
    """An executable that fails is run again."""
    command = f"echo x >> {tmp_path}/log; test $(wc -l < {tmp_path}/log) = 2"
    (task,) = await ends(session, ComputeTask(executable=command, shell=True, backend_options={"retries": 5}))
    assert task.state is TaskState.DONE
    assert (tmp_path / "log").read_text() == "x\nx\n"


async def test_cluster_is_left_as_found(cluster: LocalCluster, tmp_path: Path, until: Until) -> None:
    """The cluster is as it was when the session is over."""
    scheduler = cluster.scheduler
    scratch = Path(next(iter(scheduler.workers.values())).local_directory).parent

    def left(uid: str) -> list[str]:
        names = [*scheduler.tasks, *scheduler.plugins, *scheduler._broker._topics, *(p.name for p in scratch.iterdir())]
        return [name for name in names if uid in name]

    async with Session(backends=[DaskExecutionBackend(cluster=cluster)], work_dir=tmp_path, uid="tidy") as session:
        tasks = [ComputeTask(function=bytes, args=(size,)) for size in [*range(200), 300_000]]
        await ends(session, *tasks)
        await until(lambda: not scheduler.tasks)  # released while the session is open
        assert len(left("tidy")) == 6  # the plugin, the topic, and of each worker its record and its page of frames
    assert left("tidy") == []
    assert cluster.status.name == "running"
    assert not list(tmp_path.iterdir())
