"""What tasks find on Dragon, and how workers and jobs share its processors."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import CancelResult, ComputeTask, Resources, Session, TaskState
from rhapsody.errors import TaskExecutionError, UnsupportedError
from rhapsody_dragon.exit_watch import is_alive
from rhapsody_dragon.v1 import DragonExecutionBackendV1
from rhapsody_dragon.v3 import DragonExecutionBackendV3

from .conftest import Shared, run_tasks

pytestmark = [pytest.mark.engine("dragon"), pytest.mark.usefixtures("dragon"), pytest.mark.timeout(120)]

STREAM = partial(DragonExecutionBackendV3, disable_batch_submission=True)
KINDS = {"V1": DragonExecutionBackendV1, "V3": DragonExecutionBackendV3}  # V2's workers are V3's
STREAM_NIGHTLY = pytest.mark.parametrize("stream", [False, pytest.param(True, marks=pytest.mark.nightly)])
MODES = pytest.mark.parametrize("stream", [False, True], ids=["batch", "stream"])
kinds = pytest.mark.parametrize("kind", list(KINDS.values()), ids=list(KINDS))


def absolutes_of_a_pool(method: str) -> list[int]:
    with multiprocessing.get_context(method).Pool(2) as pool:
        return pool.map(abs, [-1, -2])


def absolutes_of_an_executor() -> list[int]:
    with ProcessPoolExecutor(2) as executor:
        return list(executor.map(abs, [-1, -2]))


def wait_for_file(path: str, began: str) -> None:
    Path(began).touch()
    while not Path(path).exists():
        time.sleep(0.01)


def v3_of(stream: bool = False, **options: Any) -> DragonExecutionBackendV3:
    return DragonExecutionBackendV3(num_workers=2, disable_batch_submission=stream, **options)


async def until(path: Path) -> None:
    async with asyncio.timeout(60):
        while not path.exists():
            await asyncio.sleep(0.02)


@kinds
def test_input_of_a_function_is_empty(kind: Callable[[], Any], shared: Shared) -> None:
    """Whoever reads it goes on at once; Dragon's own never ends."""
    tasks = [ComputeTask(function=lambda: sys.stdin.read()), ComputeTask(function=os.read, args=(0, 10))]
    shared.run(kind, *tasks)
    assert [task.return_value for task in tasks] == ["", b""]


@kinds
def test_multiprocessing_works_in_a_task(kind: Callable[[], Any], shared: Shared) -> None:
    """A Pool of each method, and an executor; Dragon's own classes in their place would wait for ever."""
    tasks = [ComputeTask(function=absolutes_of_a_pool, args=(method,)) for method in ("fork", "spawn")]
    tasks.append(ComputeTask(function=absolutes_of_an_executor))
    shared.run(kind, *tasks)
    assert [task.return_value for task in tasks] == [[1, 2]] * 3


def test_a_job_waits_for_its_processors(tmp_path: Path) -> None:
    """While a function takes one of two, two ranks wait, and what came later behind them; too many are refused."""
    gate, began, ran = (tmp_path / name for name in ("gate", "began", "ran"))

    async def main() -> None:
        function = ComputeTask(function=wait_for_file, args=(str(gate), str(began)))
        ranks = Resources(ranks=2)
        job = ComputeTask(executable="/bin/sh", arguments=["-c", f"echo rank >> {ran}"], resources=ranks)
        later = ComputeTask(function=os.path.exists, args=(str(ran),))
        backend = v3_of()
        async with Session([backend], work_dir=tmp_path) as session:
            for too_much, named in ((Resources(ranks=4000), "slots"), (Resources(gpus_per_rank=64), "GPU")):
                with pytest.raises(UnsupportedError, match=named):
                    await session.submit_tasks([ComputeTask(executable="true", resources=too_much)])
            assert backend._processors is not None
            if backend._processors.count > 2:
                pytest.skip(
                    "this machine has more than two processors, so that one function does not hold two ranks up"
                )
            await session.submit_tasks([function])
            await until(began)
            await session.submit_tasks([job])
            await asyncio.sleep(0.3)
            await session.submit_tasks([later])
            await asyncio.sleep(1.0)  # for what should not run
            assert not ran.exists()
            assert job.state is later.state is TaskState.QUEUED
            gate.touch()
            await session.wait_tasks()
        assert ran.read_text() == "rank\nrank\n"
        assert later.return_value is True

    asyncio.run(main())


@MODES
def test_templates_and_jobs_run(stream: bool, shared: Shared) -> None:
    """Folder, variables, input, streams and exit codes, of executables and functions."""
    template = {"process_template": {"cwd": "/", "env": {"A": "green"}}}
    script = ["-c", "pwd; echo $A >&2; exit 3"]
    one, job, function = shared.run(
        STREAM if stream else DragonExecutionBackendV3,
        ComputeTask(executable="/bin/sh", arguments=script, backend_options=template),
        ComputeTask(executable="cat", stdin="in", backend_options={"process_templates": [(2, {})], "pmi": None}),
        ComputeTask(function=lambda: (str(Path.cwd()), os.environ["A"]), backend_options=template),
    )
    assert (one.exit_code, one.stdout, one.stderr) == (3, "/\n", "green\n")
    assert isinstance(one.exception, TaskExecutionError)
    assert (job.exit_code, job.stdout) == (0, "inin")
    assert function.return_value == ("/", "green")


@STREAM_NIGHTLY
def test_a_time_limit_ends_each_kind(stream: bool, shared: Shared) -> None:
    """Their processes are gone, and the error is TimeoutError."""
    limit = {"timeout": 0.5}
    tasks = shared.run(
        STREAM if stream else DragonExecutionBackendV3,
        ComputeTask(function=time.sleep, args=(300,), backend_options=limit),
        ComputeTask(executable="sleep", arguments=["300"], backend_options=limit),
        ComputeTask(executable="sleep", arguments=["300"], resources=Resources(ranks=2), backend_options=limit),
    )
    assert [type(task.exception) for task in tasks] == [TimeoutError] * 3
    assert [task.exit_code for task in tasks[1:]] == [-15, -15]


@STREAM_NIGHTLY
def test_waiting_jobs_are_withdrawn(stream: bool, tmp_path: Path) -> None:
    """Those that wait never run; the one that runs is stopped, and RUNNING was true of it alone."""
    script = "echo $$ > {}/{}; exec sleep 300"
    tasks = [
        ComputeTask(
            executable="/bin/sh", arguments=["-c", script.format(tmp_path, number)], resources=Resources(ranks=2)
        )
        for number in range(3)
    ]

    async def main() -> dict[str, CancelResult]:
        async with Session([v3_of(stream)], work_dir=tmp_path) as session:
            await session.submit_tasks(tasks)
            await until(tmp_path / "0")
            async with asyncio.timeout(60):
                while tasks[0].state is not TaskState.RUNNING:
                    await asyncio.sleep(0.02)
            assert [task.state for task in tasks[1:]] == [TaskState.QUEUED] * 2
            return dict(await session.cancel_tasks(tasks))

    results = asyncio.run(main())
    assert results[tasks[0].uid] is CancelResult.STOPPED
    assert {task.state for task in tasks} == {TaskState.CANCELED}
    assert not (tmp_path / "2").exists()
    assert not is_alive(int((tmp_path / "0").read_text()))


def test_a_killed_rank_fails_its_job(shared: Shared) -> None:
    """By the signal, and the launcher goes on."""
    killed, after = shared.run(
        DragonExecutionBackendV3,
        ComputeTask(executable="/bin/sh", arguments=["-c", "kill -KILL $$"], resources=Resources(ranks=2)),
        ComputeTask(executable="echo", arguments=["hi"], resources=Resources(ranks=2)),
    )
    assert killed.exit_code == -signal.SIGKILL
    assert after.stdout == "hi\nhi\n"


def test_stream_reports_each_task_at_once(tmp_path: Path) -> None:
    """A short task behind a long one on the other worker is DONE while that runs."""

    async def main() -> None:
        gate, began = tmp_path / "gate", tmp_path / "began"
        async with Session([v3_of(stream=True)], work_dir=tmp_path) as session:
            long = ComputeTask(function=wait_for_file, args=(str(gate), str(began)))
            short = [ComputeTask(function=abs, args=(-number,)) for number in range(50)]
            await session.submit_tasks([long, *short])
            await session.wait_tasks(short)
            await until(began)
            async with asyncio.timeout(30):
                while long.state is not TaskState.RUNNING:
                    await asyncio.sleep(0.02)
            gate.touch()
            await session.wait_tasks()

    asyncio.run(main())


def test_cancel_right_after_submit(tmp_path: Path) -> None:
    """Whether a task has arrived at its worker, is loaded or runs by then, nobody waits for it."""

    async def main() -> None:
        async with Session([v3_of(stream=True)], work_dir=tmp_path) as session:
            for pause in (0.0, 0.0005, 0.001, 0.002):
                tasks = [ComputeTask(function=time.sleep, args=(300,)) for _ in range(2)]
                await session.submit_tasks(tasks)
                await asyncio.sleep(pause)
                began = time.monotonic()
                results = await session.cancel_tasks(tasks)
                assert set(results.values()) <= {CancelResult.STOPPED, CancelResult.NEVER_STARTED}
                assert time.monotonic() - began < 30

    asyncio.run(main())


def test_an_option_without_effect_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`disable_background_batching` has nothing to disable."""
    run_tasks(v3_of(disable_background_batching=True), tmp_path, ComputeTask(function=abs, args=(-1,)))
    assert "disable_background_batching" in caplog.text
