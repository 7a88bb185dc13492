"""The program that runs a unit of functions on the pilot."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
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
    return subprocess.run(command(folder), capture_output=True, text=True, check=False)


def command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "rhapsody_radical.unit", str(folder)]


@pytest.fixture
def a_unit(tmp_path: Path) -> Iterator[unit.Unit]:
    with (tmp_path / unit.FRAMES).open("wb", buffering=0) as frames:
        yield unit.Unit(tmp_path, frames)


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


def test_a_task_that_has_ended_when_its_cancel_arrives_takes_no_neighbour_along(
    a_unit: unit.Unit, tmp_path: Path
) -> None:
    assert a_unit.claim("a")
    a_unit.report(b"")
    assert a_unit.claim("b")
    a_unit.heed(["a"])  # returns: it does not halt
    assert not unit.take_halt(tmp_path)


def test_a_waiting_task_that_is_canceled_ends_while_its_neighbour_runs(a_unit: unit.Unit, tmp_path: Path) -> None:
    waiting = ComputeTask(function=print)
    assert a_unit.claim("a")
    for _ in range(2):
        a_unit.heed([waiting.uid])
    [outcome] = outcomes(batch_of(tmp_path, waiting), tmp_path)
    assert (outcome.uid, outcome.state) == (waiting.uid, TaskState.CANCELED)
    assert not a_unit.claim(waiting.uid)


def wait_for(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.01)
    Path(f"{path}.seen").touch()


def test_a_unit_halts_at_a_running_task_that_is_canceled_and_begins_no_other(tmp_path: Path) -> None:
    go, begun = tmp_path / "go", tmp_path / "begun"
    tasks = [ComputeTask(function=wait_for, args=(str(go),)), ComputeTask(function=Path.touch, args=(begun,))]
    batch = prepare(tmp_path / "u", *tasks)
    process = subprocess.Popen(command(tmp_path / "u"))
    try:
        while not (tmp_path / "u" / unit.FRAMES).exists():
            time.sleep(0.01)
        unit.write_cancel(tmp_path / "u", [tasks[0].uid])
        while not unit.take_halt(tmp_path / "u"):
            time.sleep(0.01)
        go.touch()  # its function comes to an end, and the unit goes no further all the same
        while not (tmp_path / "go.seen").exists():
            time.sleep(0.01)
        time.sleep(0.3)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert not begun.exists()
    assert outcomes(batch, tmp_path / "u") == []


def test_a_unit_that_was_recalled_runs_nothing(tmp_path: Path) -> None:
    prepare(tmp_path / "u", ComputeTask(function=abs, args=(-7,)))
    assert unit.recall(tmp_path / "u")
    assert run(tmp_path / "u").returncode == 0
    assert not (tmp_path / "u" / unit.FRAMES).exists()


def test_a_unit_that_has_begun_cannot_be_recalled(tmp_path: Path) -> None:
    prepare(tmp_path / "u", ComputeTask(function=abs, args=(-7,)))
    run(tmp_path / "u")
    assert not unit.recall(tmp_path / "u")


def test_a_task_that_is_canceled_before_its_unit_begins_is_passed_over(tmp_path: Path) -> None:
    tasks = [ComputeTask(function=abs, args=(-number,)) for number in range(3)]
    batch = prepare(tmp_path / "u", *tasks)
    unit.write_cancel(tmp_path / "u", [tasks[1].uid])
    assert run(tmp_path / "u").returncode == 0
    assert {outcome.uid: outcome.state for outcome in outcomes(batch, tmp_path / "u")} == {
        tasks[0].uid: TaskState.DONE,
        tasks[1].uid: TaskState.CANCELED,
        tasks[2].uid: TaskState.DONE,
    }
