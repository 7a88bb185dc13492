"""`FileJobs` follows batches that an engine runs from file to file."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rhapsody.api import BackendError, ComputeTask, InvalidBackendError
from rhapsody.plugin import BackendContext, CancelResult, FileJobs, Outcome, Returned, Started, TaskBatch, TaskState


@pytest.fixture
async def context(tmp_path: Path) -> BackendContext:
    return BackendContext(backend="b", session="s", work_dir=tmp_path, loop=asyncio.get_running_loop())


def batch_of(context: BackendContext, uid: int = 1) -> TaskBatch:
    return TaskBatch(uid, [ComputeTask(function=os.getpid), ComputeTask(function=int)], context)


def run(source: Path, target: Path) -> None:
    subprocess.run([sys.executable, "-m", "rhapsody.worker", source, target], check=True)


async def test_jobs_report_what_ran(context: BackendContext) -> None:
    """Frames that were there when the job had ended are no loss; its files are removed, those of the engine stay."""
    jobs = FileJobs(context)
    batch = batch_of(context)
    source, target = jobs.write(batch)
    (jobs.folder / "engine.log").touch()

    def ended() -> str:
        run(source, target)  # as if the job ended between two polls
        return "it ended"

    jobs.follow(batch, ended, native_id="job 7", logs="/logs/7")
    jobs.report()
    events = context.events.take()
    assert [type(event) for event in events] == [Started, Outcome, Started, Outcome]
    assert {(event.native_id, event.logs) for event in events if isinstance(event, Started | Outcome)} == {
        ("job 7", "/logs/7")
    }
    jobs.close()
    assert [path.name for path in jobs.folder.iterdir()] == ["engine.log"]


async def test_lost_jobs_give_tasks_back(context: BackendContext) -> None:
    """A job that ended without a frame gives its tasks back; one that goes on keeps them."""
    jobs = FileJobs(context)
    how: dict[int, str | None] = {1: "it is gone", 2: None}
    for uid in how:
        jobs.write(batch := batch_of(context, uid))
        jobs.follow(batch, lambda uid=uid: how[uid])  # type: ignore[misc]
    jobs.report()
    jobs.report()
    (returned,) = context.events.take()
    assert isinstance(returned, Returned)
    assert len(returned.uids) == 2
    assert [path.name for path in jobs.folder.iterdir()] == ["00000002.in"]
    jobs.close()
    assert not jobs.folder.exists()


async def test_canceled_tasks_do_not_begin(context: BackendContext) -> None:
    """A cancel reaches the job that has the task, and what it answers comes true."""
    jobs = FileJobs(context)
    batch, other = batch_of(context), batch_of(context, 2)
    files = jobs.write(batch)
    for each in (other, batch):
        jobs.follow(each, lambda: None)
    uid = batch.tasks[1].uid
    assert jobs.cancel(task for task in batch.tasks if task.uid == uid) == {uid: CancelResult.NEVER_STARTED}
    run(*files)
    jobs.report()
    ends = {event.uid: event.state for event in context.events.take() if isinstance(event, Outcome)}
    assert ends == {batch.tasks[0].uid: TaskState.DONE, uid: TaskState.CANCELED}
    jobs.close()


async def test_jobs_that_never_begin_are_a_loss(context: BackendContext) -> None:
    """Jobs that end before they begin do not come back without end: the tenth in a row is an error that says why."""
    jobs = FileJobs(context)
    for uid in range(9):
        jobs.follow(batch_of(context, uid), lambda: "no such command")
        jobs.report()
    jobs.follow(batch_of(context, 10), lambda: "no such command", logs="/logs/10")
    with pytest.raises(BackendError, match=r"10 jobs in a row .*: no such command \(log: /logs/10\)"):
        jobs.report()
    jobs.close()


async def test_end_of_a_job_is_a_function(context: BackendContext) -> None:
    """What cannot be asked for the end of a job is refused in a sentence."""
    jobs = FileJobs(context)
    with pytest.raises(InvalidBackendError, match="follow takes a function that says how the job ended"):
        jobs.follow(batch_of(context), "ended")  # type: ignore[arg-type]
