"""What a function task asks for of its worker: a folder, variables, a seed."""

from __future__ import annotations

import os
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rhapsody import worker
from rhapsody.api import ComputeTask, InvalidTaskError, UnsupportedError, seeded
from rhapsody.protocol.batch import encode_tasks
from rhapsody.testing.tasks import surroundings

from ..local import local, run

NAME = "RHAPSODY_TEST_VARIABLE"


async def test_folder_and_variables_hold_for_one_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task has them, where it raises too, and the next task of the same worker does not."""
    monkeypatch.setenv("HOME", str(tmp_path))
    asks: dict[str, Any] = {"cwd": "~", "environment": {NAME: "1", "PATH": None}}
    failed = ComputeTask(function=os.stat, args=("/no/such/file",), **asks)
    asking = ComputeTask(function=surroundings, args=([NAME, "PATH"],), **asks)
    after = ComputeTask(function=surroundings, args=([NAME, "PATH"],))
    await run(local("processes", 1), failed, asking, after)
    assert isinstance(failed.exception, FileNotFoundError)
    assert asking.return_value == (str(tmp_path), ["1", None])
    assert after.return_value == (str(Path.cwd()), [None, os.environ["PATH"]])


async def test_a_folder_that_is_not_there_fails_the_task() -> None:
    """It fails by the error of the change of folder, and the worker goes on where it was."""
    lost = ComputeTask(function=os.getcwd, cwd="/no/such/folder")
    after = ComputeTask(function=os.getcwd)
    await run(local("processes", 1), lost, after)
    assert isinstance(lost.exception, FileNotFoundError)
    assert after.return_value == str(Path.cwd())


async def test_threads_refuse_a_folder() -> None:
    """A function in a thread shares the program's folder and variables: UnsupportedError at submit."""
    async with local("threads") as session:
        for asks in ({"cwd": "/"}, {"environment": {NAME: "1"}}):
            with pytest.raises(UnsupportedError, match="it runs in this process"):
                await session.submit_tasks([ComputeTask(function=os.getcwd, **asks)])


@pytest.mark.parametrize("kind", ["threads", "processes"])
async def test_a_seed_of_a_task_is_its_stream(kind: str) -> None:
    """Equal seeds give equal numbers, also by a method of a generator, which is not taken for a copied one."""
    normal = np.random.default_rng(0).normal
    functions: list[Any] = [random.random, normal]
    tasks = [ComputeTask(function=function, seed=seed) for function in functions for seed in (1, 1, (1, 2))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await run(local(kind), *tasks)
    found = [task.return_value for task in tasks]
    assert found == [seeded(function, seed, 0)() for function in functions for seed in (1, 1, (1, 2))]


@pytest.mark.parametrize("seed", [-1, 1.5, "x", True, [], [1, "y"]])
def test_a_task_refuses_a_senseless_seed(seed: Any) -> None:
    """A seed is a whole number that is not negative, or several; and a function's."""
    with pytest.raises(InvalidTaskError, match="seed must be a whole number"):
        ComputeTask(function=random.random, seed=seed)
    with pytest.raises(InvalidTaskError, match="among its arguments"):
        ComputeTask(executable="true", seed=1)


async def test_a_task_that_travels_again_is_no_copy() -> None:
    """A task whose batch is encoded a second time does not count as a second task with the generator."""
    task = ComputeTask(function=np.random.default_rng(1).normal)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            encode_tasks([task], "session", Path())


def test_worker_adds_variables(tmp_path: Path) -> None:
    """Variables that the worker adds reach functions and executables; a task's own come before them."""
    calls = [ComputeTask(function=os.getenv, args=("GPUS",), environment=own) for own in (None, {"GPUS": "own"})]
    payload, refused = encode_tasks([*calls, ComputeTask(executable="printenv", arguments=["GPUS"])], "s", tmp_path)
    assert not refused
    first, second, third = (frame[2] for frame in worker.frames(worker.run_batch(payload, environment={"GPUS": "3"})))
    assert (first, second, third[0][1].strip()) == ("3", "own", "3")
    assert "GPUS" not in os.environ
