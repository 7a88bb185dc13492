"""The process that runs a batch of functions on the pilot."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rhapsody import __version__
from rhapsody.api import ComputeTask, TaskState
from rhapsody.plugin import BackendContext, Outcome, TaskBatch
from rhapsody_radical import batch_main

PROGRAM = [sys.executable, "-m", "rhapsody_radical.batch_main"]


def batch_of(folder: Path, *tasks: ComputeTask) -> TaskBatch:
    loop = asyncio.new_event_loop()
    try:
        return TaskBatch(1, tasks, BackendContext(backend="radical", session="s", work_dir=folder, loop=loop))
    finally:
        loop.close()


def outcomes(batch: TaskBatch, folder: Path) -> list[Outcome]:
    return batch.decode((folder / batch_main.FRAMES).read_bytes())


def prepare(folder: Path, *tasks: ComputeTask) -> TaskBatch:
    batch = batch_of(folder, *tasks)
    folder.mkdir()
    (folder / batch_main.PAYLOAD).write_bytes(batch.encode())
    (folder.parent / batch_main.SEARCH_PATH).write_text(json.dumps(sys.path))
    return batch


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder), capture_output=True, text=True, check=False)


def command(folder: Path) -> list[str]:
    return [*PROGRAM, str(folder)]


@pytest.fixture
def reporter(tmp_path: Path) -> Iterator[batch_main.BatchReporter]:
    with (tmp_path / batch_main.FRAMES).open("wb", buffering=0) as frames:
        yield batch_main.BatchReporter(tmp_path, frames)


def test_each_task_has_a_frame(tmp_path: Path) -> None:
    """Every task of a batch has a frame."""
    batch = prepare(tmp_path / "u", ComputeTask(function=abs, args=(-7,)), ComputeTask(function=int, args=("x",)))
    assert run(tmp_path / "u").returncode == 0
    good, bad = outcomes(batch, tmp_path / "u")
    assert (good.state, good.return_value) == (TaskState.DONE, 7)
    assert isinstance(bad.exception, ValueError)


@pytest.mark.parametrize(("session", "noted"), [(__version__, None), ("9.8.7", __version__)])
def test_another_core_is_noted(tmp_path: Path, session: str, noted: str | None) -> None:
    """A process with another rhapsody-core than the session notes its version, and runs the batch."""
    batch = prepare(tmp_path / "u", ComputeTask(function=abs, args=(-7,)))
    assert subprocess.run([*PROGRAM, session, str(tmp_path / "u")], check=False).returncode == 0
    assert batch_main.read_other_core(tmp_path / "u") == noted
    assert [outcome.return_value for outcome in outcomes(batch, tmp_path / "u")] == [7]


def test_sessions_modules_are_found(tmp_path: Path) -> None:
    """A module that only the session can find is found."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "only_here.py").write_text("def answer():\n    return 42\n")
    sys.path.append(str(tmp_path / "mine"))
    try:
        import only_here  # type: ignore[import-not-found]

        batch = prepare(tmp_path / "u", ComputeTask(function=only_here.answer))
    finally:
        sys.path.remove(str(tmp_path / "mine"))
    (tmp_path / batch_main.SEARCH_PATH).write_text(json.dumps([str(tmp_path / "mine")]))
    run(tmp_path / "u")
    [outcome] = outcomes(batch, tmp_path / "u")
    assert outcome.return_value == 42


def test_finished_tasks_survive_a_crash(tmp_path: Path) -> None:
    """The results of a batch outlive its process."""
    import os

    batch = prepare(tmp_path / "u", ComputeTask(function=abs, args=(-7,)), ComputeTask(function=os._exit, args=(3,)))
    assert run(tmp_path / "u").returncode == 3
    [outcome] = outcomes(batch, tmp_path / "u")
    assert outcome.return_value == 7


def test_late_cancel_spares_the_next(reporter: batch_main.BatchReporter, tmp_path: Path) -> None:
    """A task that has ended when its cancel arrives takes no neighbour along."""
    assert reporter.claim("a")
    reporter.report(b"")
    assert reporter.claim("b")
    reporter.cancel(["a"])  # returns: it does not halt
    assert not batch_main.take_halt(tmp_path)


def test_waiting_task_cancels_at_once(reporter: batch_main.BatchReporter, tmp_path: Path) -> None:
    """A waiting task that is canceled ends while its neighbour runs."""
    waiting = ComputeTask(function=print)
    assert reporter.claim("a")
    for _ in range(2):
        reporter.cancel([waiting.uid])
    [outcome] = outcomes(batch_of(tmp_path, waiting), tmp_path)
    assert (outcome.uid, outcome.state) == (waiting.uid, TaskState.CANCELED)
    assert not reporter.claim(waiting.uid)


def wait_for(path: str) -> None:
    Path(f"{path}.begun").touch()
    while not Path(path).exists():
        time.sleep(0.01)
    Path(f"{path}.seen").touch()


def test_batch_halts_at_canceled_task(tmp_path: Path) -> None:
    """A batch halts at a running task that is canceled, and begins no other."""
    go, begun = tmp_path / "go", tmp_path / "begun"
    tasks = [ComputeTask(function=wait_for, args=(str(go),)), ComputeTask(function=Path.touch, args=(begun,))]
    batch = prepare(tmp_path / "u", *tasks)
    process = subprocess.Popen(command(tmp_path / "u"))
    try:
        while not (tmp_path / "go.begun").exists():
            time.sleep(0.01)
        batch_main.write_cancel(tmp_path / "u", [tasks[0].uid])
        while not batch_main.take_halt(tmp_path / "u"):
            time.sleep(0.01)
        go.touch()  # its function comes to an end, and the batch goes no further all the same
        while not (tmp_path / "go.seen").exists():
            time.sleep(0.01)
        time.sleep(0.3)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert not begun.exists()
    assert outcomes(batch, tmp_path / "u") == []


def test_recalled_batch_runs_nothing(tmp_path: Path) -> None:
    """A batch that was recalled runs nothing."""
    prepare(tmp_path / "u", ComputeTask(function=abs, args=(-7,)))
    assert batch_main.recall(tmp_path / "u")
    assert run(tmp_path / "u").returncode == 0
    assert not (tmp_path / "u" / batch_main.FRAMES).exists()


def test_begun_batch_cannot_be_recalled(tmp_path: Path) -> None:
    """A batch that has begun cannot be recalled."""
    prepare(tmp_path / "u", ComputeTask(function=abs, args=(-7,)))
    run(tmp_path / "u")
    assert not batch_main.recall(tmp_path / "u")


def test_early_cancel_is_skipped(tmp_path: Path) -> None:
    """A task that is canceled before its batch begins is skipped."""
    tasks = [ComputeTask(function=abs, args=(-number,)) for number in range(3)]
    batch = prepare(tmp_path / "u", *tasks)
    batch_main.write_cancel(tmp_path / "u", [tasks[1].uid])
    assert run(tmp_path / "u").returncode == 0
    assert {outcome.uid: outcome.state for outcome in outcomes(batch, tmp_path / "u")} == {
        tasks[0].uid: TaskState.DONE,
        tasks[1].uid: TaskState.CANCELED,
        tasks[2].uid: TaskState.DONE,
    }
