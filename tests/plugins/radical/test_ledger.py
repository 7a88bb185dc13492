"""What RADICAL-Pilot's reports mean for the tasks, without RADICAL-Pilot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from rhapsody.api import ComputeTask, TaskState
from rhapsody.errors import TaskExecutionError, WorkerLostError
from rhapsody.plugin import CancelResult, Event, Outcome, Returned, Started
from rhapsody.worker import encode_frame, frames
from rhapsody_radical import batch_main
from rhapsody_radical.ledger import Held, Ledger


@attrs.define
class Batch:
    """Stands for a TaskBatch whose tasks ended well."""

    shipped: Sequence[ComputeTask]

    def decode(self, data: bytes) -> list[Outcome]:
        return [Outcome(uid, TaskState.DONE, started_at=1.0, ended_at=2.0) for uid, *_ in frames(data)]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(lambda: tmp_path)


def hold(ledger: Ledger, *tasks: ComputeTask, folder: Path | None = None) -> Held:
    held = Held("task.7", Batch(tasks), list(tasks), folder)  # type: ignore[arg-type]
    ledger.add([held])
    return held


def batch_of(ledger: Ledger, folder: Path, count: int) -> tuple[list[ComputeTask], Held]:
    tasks = [ComputeTask(function=print) for _ in range(count)]
    folder.mkdir()
    return tasks, hold(ledger, *tasks, folder=folder)


def frame_of(task: ComputeTask) -> bytes:
    return encode_frame((task.uid, "value", None, 1.0, 2.0, ""))


def write(folder: Path, *tasks: ComputeTask) -> None:
    with (folder / batch_main.FRAMES).open("ab") as file:
        for task in tasks:
            file.write(frame_of(task))


def report(ledger: Ledger, state: str, **details: Any) -> list[Event]:
    return ledger.apply([["task.7", state, details]], 100.0)


def executable(ledger: Ledger, folder: Path, task: ComputeTask, state: str, err: str = "", **details: Any) -> Outcome:
    hold(ledger, task)
    (folder / "task.7.out").write_text("out")
    (folder / "task.7.err").write_text(err)
    [outcome] = report(ledger, state, sandbox=f"file://localhost{folder}/", **details)
    assert isinstance(outcome, Outcome)
    return outcome


def ends(events: Sequence[Event]) -> dict[str, TaskState]:
    return {event.uid: event.state for event in events if isinstance(event, Outcome)}


def test_start_is_when_the_agent_runs_it(ledger: Ledger) -> None:
    """An executable starts when the agent runs it."""
    task = ComputeTask(executable="x")
    hold(ledger, task)
    [started] = report(ledger, "AGENT_EXECUTING", node="node7")
    assert isinstance(started, Started)
    assert (started.uid, started.at, started.ran_on) == (task.uid, 100.0, "node7")


def test_done_executable_has_its_output(ledger: Ledger, tmp_path: Path) -> None:
    """An executable that is done has its whole output."""
    outcome = executable(ledger, tmp_path, ComputeTask(executable="x"), "DONE", "err", exit_code=0, stdout="the tail")
    assert (outcome.state, outcome.stdout, outcome.stderr, outcome.exit_code) == (TaskState.DONE, "out", "err", 0)


def test_captured_output_is_moved(ledger: Ledger, tmp_path: Path) -> None:
    """Captured output is moved to the session's folder."""
    task = ComputeTask(executable="x", capture_stdio=True, uid="a/b")
    outcome = executable(ledger, tmp_path, task, "DONE", exit_code=0)
    assert outcome.stdout_path == str(tmp_path / "a%2Fb.out")
    assert Path(outcome.stdout_path).read_text() == "out"
    assert outcome.stdout is None


def test_remote_files_fall_back_to_tail(ledger: Ledger) -> None:
    """An executable whose files are elsewhere has the end of its output that RADICAL-Pilot kept."""
    hold(ledger, ComputeTask(executable="x"))
    [outcome] = report(ledger, "DONE", exit_code=0, stdout="tail", stderr="", sandbox="sftp://far/away")
    assert isinstance(outcome, Outcome)
    assert outcome.stdout == "tail"


def test_removed_files_fall_back_to_tail(ledger: Ledger, tmp_path: Path) -> None:
    """An executable that removed its own files has the end of its output that RADICAL-Pilot kept."""
    hold(ledger, ComputeTask(executable="x"))
    (tmp_path / "task.7.out").write_text("out")
    [outcome] = report(ledger, "DONE", sandbox=f"file://localhost{tmp_path}/", exit_code=0, stdout="tail", stderr="")
    assert isinstance(outcome, Outcome)
    assert (outcome.state, outcome.stdout, outcome.stderr) == (TaskState.DONE, "tail", "")


def test_unfetchable_output_fails_alone(tmp_path: Path) -> None:
    """A task whose output cannot be fetched fails alone."""
    (tmp_path / "no").touch()  # a file where a folder belongs
    ledger = Ledger(lambda: tmp_path / "no" / "such" / "folder")
    task, other = ComputeTask(executable="x", capture_stdio=True), ComputeTask(executable="x")
    for uid, one in (("task.7", task), ("task.8", other)):
        ledger.add([Held(uid, Batch([one]), [one])])  # type: ignore[arg-type]
        for suffix in ("out", "err"):
            (tmp_path / f"{uid}.{suffix}").write_text("words")
    done = {"sandbox": f"file://localhost{tmp_path}/", "exit_code": 0}
    bad, good = ledger.apply([["task.7", "DONE", done], ["task.8", "DONE", done]], 100.0)
    assert isinstance(bad, Outcome)
    assert isinstance(good, Outcome)
    assert (good.state, good.stdout) == (TaskState.DONE, "words")
    assert (bad.state, bad.exit_code) == (TaskState.FAILED, 0)
    assert isinstance(bad.exception, TaskExecutionError)
    assert "its output cannot be fetched" in str(bad.exception)
    assert "no/such/folder" in str(bad.exception)


def test_failed_executable_is_explained(ledger: Ledger, tmp_path: Path) -> None:
    """An executable that fails reports its exit code and the end of its stderr."""
    outcome = executable(ledger, tmp_path, ComputeTask(executable="x"), "FAILED", "oh no", exit_code=3)
    assert isinstance(outcome.exception, TaskExecutionError)
    assert outcome.exception.exit_code == 3
    assert "oh no" in str(outcome.exception)


def test_missing_executable_is_named(ledger: Ledger, tmp_path: Path) -> None:
    """An executable that is missing is named."""
    said = "/p/task.7.exec.sh: line 56: /no/such: No such file or directory\n"
    outcome = executable(ledger, tmp_path, ComputeTask(executable="/no/such"), "FAILED", said, exit_code=127)
    assert outcome.exit_code is None
    assert "could not start '/no/such': No such file or directory" in str(outcome.exception)


def test_exit_code_127_means_started(ledger: Ledger, tmp_path: Path) -> None:
    """An executable that returns 127 itself was started."""
    outcome = executable(ledger, tmp_path, ComputeTask(executable="x"), "FAILED", "mine", exit_code=127)
    assert outcome.exit_code == 127


def test_signal_is_no_exit_code(ledger: Ledger, tmp_path: Path) -> None:
    """A signal is distinguished from an exit code by what the shell says."""
    said = "/p/task.7.exec.sh: line 61: 31552 Killed                  sh -c x\n"
    assert executable(ledger, tmp_path, ComputeTask(executable="x"), "FAILED", said, exit_code=137).exit_code == -9
    assert executable(ledger, tmp_path, ComputeTask(executable="x"), "FAILED", "", exit_code=137).exit_code == 137


def test_radicals_own_failure_is_explained(ledger: Ledger) -> None:
    """A task that RADICAL-Pilot itself fails says why."""
    hold(ledger, ComputeTask(executable="x"))
    [outcome] = report(ledger, "FAILED", exception="ValueError", detail="no launcher found")
    assert isinstance(outcome, Outcome)
    assert "no launcher found" in str(outcome.exception)


def test_canceled_only_on_request(ledger: Ledger) -> None:
    """A task is canceled only if somebody here asked."""
    task = ComputeTask(executable="x")
    hold(ledger, task)
    assert ledger.cancel([task]) == ({task.uid: CancelResult.NEVER_STARTED}, ["task.7"], [])
    assert ends(report(ledger, "CANCELED")) == {task.uid: TaskState.CANCELED}
    hold(ledger, task)
    [outcome] = report(ledger, "CANCELED")
    assert isinstance(outcome, Outcome)
    assert isinstance(outcome.exception, WorkerLostError)


def test_timeout_is_reported(ledger: Ledger) -> None:
    """A task that its timeout stopped says so."""
    hold(ledger, ComputeTask(executable="x", backend_options={"timeout": 2.5}))
    [outcome] = report(ledger, "CANCELED")
    assert isinstance(outcome, Outcome)
    assert "timeout of 2.5 seconds" in str(outcome.exception)


def test_duplicate_report_counts_once(ledger: Ledger) -> None:
    """A report that comes twice counts once."""
    hold(ledger, ComputeTask(executable="x"))
    assert len(report(ledger, "DONE", exit_code=0)) == 1
    assert report(ledger, "FAILED") == []


def test_kept_output_is_bounded(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output that is kept is bounded."""
    monkeypatch.setattr("rhapsody_radical.ledger.KEEP", 4)
    outcome = executable(ledger, tmp_path, ComputeTask(executable="x"), "DONE", "abcdefghijkl", exit_code=0)
    assert outcome.stderr == "abcd\n[... 4 bytes left out ...]\nijkl"


def test_batch_ends_task_by_task(ledger: Ledger, tmp_path: Path) -> None:
    """Tasks of a batch end one by one while it runs."""
    folder = tmp_path / "batch"
    (first, second), _ = batch_of(ledger, folder, 2)
    assert report(ledger, "AGENT_EXECUTING") == []
    assert ledger.has_running_batches
    assert ledger.read_frames() == []  # its Python is still starting
    write(folder)
    [started] = ledger.read_frames()
    assert isinstance(started, Started)
    assert started.uid == first.uid
    write(folder, first)
    events = ledger.read_frames()
    assert [type(event) for event in events] == [Outcome, Started]
    assert events[1].uid == second.uid  # type: ignore[union-attr]
    write(folder, second)
    assert ends(report(ledger, "DONE", exit_code=0)) == {second.uid: TaskState.DONE}
    assert not ledger.has_running_batches
    assert not folder.exists()


def test_half_written_frame_waits(ledger: Ledger, tmp_path: Path) -> None:
    """A frame that is half written is left for later."""
    folder = tmp_path / "batch"
    [task], _ = batch_of(ledger, folder, 1)
    report(ledger, "AGENT_EXECUTING")
    whole = frame_of(task)
    (folder / batch_main.FRAMES).write_bytes(whole[:10])
    assert ends(ledger.read_frames()) == {}
    (folder / batch_main.FRAMES).write_bytes(whole)
    assert ends(ledger.read_frames()) == {task.uid: TaskState.DONE}


def test_dead_batch_returns_its_rest(ledger: Ledger, tmp_path: Path) -> None:
    """When a batch dies its running task fails and the others go back."""
    folder = tmp_path / "batch"
    (first, second, third), _ = batch_of(ledger, folder, 3)
    report(ledger, "AGENT_EXECUTING")
    write(folder, first)
    events = report(ledger, "FAILED", exit_code=139, stderr="segmentation fault")
    assert ends(events) == {first.uid: TaskState.DONE, second.uid: TaskState.FAILED}
    lost = next(event.exception for event in events if isinstance(event, Outcome) and event.uid == second.uid)
    assert isinstance(lost, WorkerLostError)
    assert "exit code 139\nsegmentation fault" in str(lost)
    assert [event.uids for event in events if isinstance(event, Returned)] == [[third.uid]]


def test_unstarted_batch_fails_whole(ledger: Ledger, tmp_path: Path) -> None:
    """When a batch never came to run all of it fails."""
    (first, second), _ = batch_of(ledger, tmp_path / "batch", 2)
    events = report(ledger, "FAILED", exit_code=127, stderr="no python here")
    assert ends(events) == {first.uid: TaskState.FAILED, second.uid: TaskState.FAILED}


def test_waiting_batch_is_recalled(ledger: Ledger, tmp_path: Path) -> None:
    """A waiting batch is recalled, and the tasks that nobody canceled go back."""
    (first, second), _ = batch_of(ledger, tmp_path / "batch", 2)
    (tmp_path / "batch" / batch_main.PAYLOAD).touch()
    results, ending, events = ledger.cancel([second])
    assert (results, ending) == ({second.uid: CancelResult.NEVER_STARTED}, ["task.7"])
    assert ends(events) == {second.uid: TaskState.CANCELED}
    assert [event.uids for event in events if isinstance(event, Returned)] == [[first.uid]]
    assert report(ledger, "CANCELED") == []


def test_begun_batch_ends_once_halted(ledger: Ledger, tmp_path: Path) -> None:
    """A batch that has begun is ended only once it has halted."""
    folder = tmp_path / "batch"
    (first, _), _ = batch_of(ledger, folder, 2)
    report(ledger, "AGENT_EXECUTING")
    write(folder)
    ledger.read_frames()
    assert ledger.cancel([first]) == ({first.uid: CancelResult.STOPPED}, [], [])
    assert json.loads((folder / batch_main.CANCEL).read_text()) == [first.uid]
    assert ledger.take_halted() == []
    (folder / batch_main.HALTED).touch()
    assert ledger.take_halted() == ["task.7"]
    assert ledger.take_halted() == []


def test_fully_canceled_batch_ends(ledger: Ledger, tmp_path: Path) -> None:
    """A batch of which all is canceled is ended at once."""
    folder = tmp_path / "batch"
    (first, second), _ = batch_of(ledger, folder, 2)
    report(ledger, "AGENT_EXECUTING")
    write(folder)
    ledger.read_frames()
    ledger.cancel([second])
    results, ending, _ = ledger.cancel([first])
    assert (results, ending) == ({first.uid: CancelResult.STOPPED}, ["task.7"])
    assert ends(report(ledger, "CANCELED")) == dict.fromkeys((first.uid, second.uid), TaskState.CANCELED)


def test_task_behind_skipped_one_starts(ledger: Ledger, tmp_path: Path) -> None:
    """The task that begins behind one that was skipped has started."""
    folder = tmp_path / "batch"
    (first, second, third), _ = batch_of(ledger, folder, 3)
    report(ledger, "AGENT_EXECUTING")
    write(folder, second)
    assert [event.uid for event in ledger.read_frames() if isinstance(event, Started)] == [first.uid]
    write(folder, first)
    assert [event.uid for event in ledger.read_frames() if isinstance(event, Started)] == [third.uid]


def test_canceled_running_task_frees_rest(ledger: Ledger, tmp_path: Path) -> None:
    """When the running task of a batch is canceled the others go back."""
    folder = tmp_path / "batch"
    (first, second), _ = batch_of(ledger, folder, 2)
    report(ledger, "AGENT_EXECUTING")
    write(folder)
    ledger.read_frames()
    ledger.cancel([first])
    events = report(ledger, "CANCELED")
    assert ends(events) == {first.uid: TaskState.CANCELED}
    assert [event.uids for event in events if isinstance(event, Returned)] == [[second.uid]]


def test_ended_batch_leaves_no_task(ledger: Ledger, tmp_path: Path) -> None:
    """No task of a batch that ended is left without an end."""
    folder = tmp_path / "batch"
    (first, second), _ = batch_of(ledger, folder, 2)
    report(ledger, "AGENT_EXECUTING")
    write(folder, first)
    assert ends(report(ledger, "DONE", exit_code=0)) == {first.uid: TaskState.DONE, second.uid: TaskState.FAILED}
