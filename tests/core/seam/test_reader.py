"""What a worker has written of a batch is read as far as it is whole, and judged when the worker is lost."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rhapsody.api import ComputeTask, WorkerLostError
from rhapsody.plugin import BackendContext, BatchReader, Outcome, Returned, Started, TaskBatch
from rhapsody.testing import die
from rhapsody.worker import run_batch


@pytest.fixture
async def context(tmp_path: Path) -> BackendContext:
    return BackendContext(backend="b", session="s", work_dir=tmp_path, loop=asyncio.get_running_loop())


def batch_of(context: BackendContext, *functions: object) -> TaskBatch:
    return TaskBatch(1, [ComputeTask(function=function) for function in functions], context)  # type: ignore[arg-type]


def run(folder: Path, batch: TaskBatch) -> int:
    (folder / "in").write_bytes(batch.encode())
    return subprocess.run([sys.executable, "-m", "rhapsody.worker", "in", "out"], cwd=folder, check=False).returncode


async def test_worker_writes_starts_and_ends(context: BackendContext, tmp_path: Path) -> None:
    """`python -m rhapsody.worker IN OUT` appends a frame when a task begins and one when it ends."""
    batch = batch_of(context, os.getpid, int)
    assert run(tmp_path, batch) == 0
    reader = BatchReader(batch, native_id="job 7", logs="/logs/7")
    events = reader.read(tmp_path / "out")
    assert [type(event) for event in events] == [Started, Outcome, Started, Outcome]
    assert {(event.native_id, event.logs) for event in events if isinstance(event, Started | Outcome)} == {
        ("job 7", "/logs/7")
    }
    assert reader.is_complete
    assert reader.read(tmp_path / "out") == []
    assert [outcome.return_value for outcome in batch.decode((tmp_path / "out").read_bytes())][1] == 0


async def test_worker_loss_is_exact(context: BackendContext, tmp_path: Path) -> None:
    """Of a killed worker's batch the ended task keeps its result, the running one fails, the others come back."""
    batch = batch_of(context, int, die, int, float)
    assert run(tmp_path, batch) == -9
    reader = BatchReader(batch)
    read = reader.read(tmp_path / "out")
    first, second, third, fourth = (task.uid for task in batch.tasks)
    assert (reader.ended, reader.running) == ({first}, second)
    failed, returned = reader.lost("its worker is gone")
    assert len(read) == 3
    assert isinstance(failed, Outcome)
    assert isinstance(failed.exception, WorkerLostError)
    assert isinstance(returned, Returned)
    assert (failed.uid, returned.uids) == (second, [third, fourth])
    assert reader.is_complete


async def test_unfinished_frame_is_read_later(context: BackendContext) -> None:
    """A frame whose end is not there yet is left for the next time; `consumed` says how much was read."""
    batch = batch_of(context, int, float)
    data = run_batch(batch.encode())
    reader = BatchReader(batch, starts=False)
    assert len(reader.feed(data[:-5])) == 1
    assert reader.consumed < len(data) - 5
    assert len(reader.feed(data[reader.consumed :])) == 1
    assert reader.consumed == len(data)


async def test_loss_without_starts(context: BackendContext, tmp_path: Path) -> None:
    """Where starts are not written, the first task without a frame may have begun."""
    reader = BatchReader(batch := batch_of(context, int, float), starts=False)
    batch.encode()
    assert reader.read(tmp_path / "none") == []
    failed, returned = reader.lost("gone", canceled={batch.tasks[0].uid})
    assert isinstance(failed, Outcome)
    assert (failed.uid, str(failed.state)) == (batch.tasks[0].uid, "CANCELED")
    assert isinstance(returned, Returned)


async def test_worker_ends_its_executable(context: BackendContext, tmp_path: Path) -> None:
    """What a worker runs ends with it, also by SIGKILL."""
    script = f"echo $$ > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; exec sleep 600"
    batch = TaskBatch(1, [ComputeTask(executable=script, shell=True)], context)
    (tmp_path / "in").write_bytes(batch.encode())
    worker = subprocess.Popen([sys.executable, "-m", "rhapsody.worker", "in", "out"], cwd=tmp_path)
    while not (tmp_path / "pid").exists():
        time.sleep(0.01)
    pid = int((tmp_path / "pid").read_text())
    worker.kill()
    worker.wait()
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.01)


def test_worker_explains_its_arguments() -> None:
    """Without two arguments it prints how it is called."""
    done = subprocess.run([sys.executable, "-m", "rhapsody.worker"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "python -m rhapsody.worker IN OUT" in done.stderr


def test_worker_reads_and_writes_pipes(context: BackendContext) -> None:
    """With `-` it reads standard input and writes frames to standard output, where nothing of a task gets between."""
    batch = TaskBatch(1, [ComputeTask(function=print, args=("hello",))], context)
    command = [sys.executable, "-m", "rhapsody.worker", "-", "-"]
    done = subprocess.run(command, input=batch.encode(), capture_output=True, check=True)
    assert done.stderr == b"hello\n"
    assert len(batch.decode(done.stdout)) == 1
