"""The program that runs a unit of functions on the pilot."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from rhapsody.api import ComputeTask, TaskState
from rhapsody.plugin import BackendContext, Outcome, TaskBatch
from rhapsody_radical import unit


def batch_of(folder: Path, *tasks: ComputeTask) -> TaskBatch:
    loop = asyncio.new_event_loop()
    try:
        return TaskBatch(1, tasks, BackendContext(backend="radical", session="s", work_dir=folder, loop=loop))
    finally:
        loop.close()


def outcomes(batch: TaskBatch, folder: Path) -> list[Outcome]:
    data = (folder / unit.FRAMES).read_bytes()
    return [outcome for frame, _ in unit.complete(data) for outcome in batch.decode(frame)]


def prepare(folder: Path, *tasks: ComputeTask) -> TaskBatch:
    batch = batch_of(folder, *tasks)
    folder.mkdir()
    (folder / unit.PAYLOAD).write_bytes(batch.encode())
    (folder.parent / unit.SEARCH_PATH).write_text(json.dumps(sys.path))
    return batch


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rhapsody_radical.unit", str(folder), "s"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_task_of_a_unit_has_a_frame(tmp_path: Path) -> None:
    batch = prepare(tmp_path / "u", ComputeTask(function=abs, args=(-7,)), ComputeTask(function=int, args=("x",)))
    assert run(tmp_path / "u").returncode == 0
    good, bad = outcomes(batch, tmp_path / "u")
    assert (good.state, good.return_value) == (TaskState.DONE, 7)
    assert isinstance(bad.exception, ValueError)


def test_a_module_that_only_the_session_can_find_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "only_here.py").write_text("def answer():\n    return 42\n")
    sys.path.append(str(tmp_path / "mine"))
    try:
        import only_here  # type: ignore[import-not-found]

        batch = prepare(tmp_path / "u", ComputeTask(function=only_here.answer))
    finally:
        sys.path.remove(str(tmp_path / "mine"))
    (tmp_path / unit.SEARCH_PATH).write_text(json.dumps([str(tmp_path / "mine")]))
    run(tmp_path / "u")
    [outcome] = outcomes(batch, tmp_path / "u")
    assert outcome.return_value == 42


def test_what_a_unit_had_done_survives_its_death(tmp_path: Path) -> None:
    import os

    batch = prepare(tmp_path / "u", ComputeTask(function=abs, args=(-7,)), ComputeTask(function=os._exit, args=(3,)))
    assert run(tmp_path / "u").returncode == 3
    [outcome] = outcomes(batch, tmp_path / "u")
    assert outcome.return_value == 7


def test_a_task_that_is_canceled_while_another_runs_is_passed_over(tmp_path: Path) -> None:
    tasks = [ComputeTask(function=abs, args=(-number,)) for number in range(3)]
    batch = prepare(tmp_path / "u", *tasks)
    unit.write_cancel(tmp_path / "u", [tasks[1].uid])
    assert run(tmp_path / "u").returncode == 0
    assert [outcome.state for outcome in outcomes(batch, tmp_path / "u")] == [
        TaskState.DONE,
        TaskState.CANCELED,
        TaskState.DONE,
    ]
