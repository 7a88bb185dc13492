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
from rhapsody_radical import unit
from rhapsody_radical.ledger import Held, Ledger


@attrs.define
class Batch:
    """Stands for a TaskBatch: a frame is the uid of a task that ended well."""

    tasks: Sequence[ComputeTask]

    def decode(self, frame: bytes) -> list[Outcome]:
        return [Outcome(frame.decode(), TaskState.DONE, started_at=1.0, ended_at=2.0)]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(lambda: tmp_path)


def hold(ledger: Ledger, *tasks: ComputeTask, folder: Path | None = None) -> Held:
    held = Held("task.7", Batch(tasks), list(tasks), folder)  # type: ignore[arg-type]
    ledger.add([held])
    return held


def unit_of(ledger: Ledger, folder: Path, count: int) -> tuple[list[ComputeTask], Held]:
    tasks = [ComputeTask(function=print) for _ in range(count)]
    folder.mkdir()
    return tasks, hold(ledger, *tasks, folder=folder)


def write(folder: Path, *tasks: ComputeTask) -> None:
    with (folder / unit.FRAMES).open("ab") as file:
        for task in tasks:
            file.write(unit.encode(task.uid.encode()))


def told(ledger: Ledger, state: str, **details: Any) -> list[Event]:
    return ledger.apply([["task.7", state, details]], 100.0)


def executable(ledger: Ledger, folder: Path, task: ComputeTask, state: str, err: str = "", **details: Any) -> Outcome:
    hold(ledger, task)
    (folder / "task.7.out").write_text("out")
    (folder / "task.7.err").write_text(err)
    [outcome] = told(ledger, state, sandbox=f"file://localhost{folder}/", **details)
    assert isinstance(outcome, Outcome)
    return outcome


def ends(events: Sequence[Event]) -> dict[str, TaskState]:
    return {event.uid: event.state for event in events if isinstance(event, Outcome)}


def test_an_executable_starts_when_the_agent_runs_it(ledger: Ledger) -> None:
    task = ComputeTask(executable="x")
    hold(ledger, task)
    [started] = told(ledger, "AGENT_EXECUTING", node="node7")
    assert isinstance(started, Started)
    assert (started.uid, started.at, started.ran_on) == (task.uid, 100.0, "node7")


def test_an_executable_that_is_done_has_its_whole_output(ledger: Ledger, tmp_path: Path) -> None:
    outcome = executable(ledger, tmp_path, ComputeTask(executable="x"), "DONE", "err", exit_code=0, stdout="the tail")
    assert (outcome.state, outcome.stdout, outcome.stderr, outcome.exit_code) == (TaskState.DONE, "out", "err", 0)


def test_captured_output_is_moved_to_the_sessions_folder(ledger: Ledger, tmp_path: Path) -> None:
    task = ComputeTask(executable="x", capture_stdio=True, uid="a/b")
    outcome = executable(ledger, tmp_path, task, "DONE", exit_code=0)
    assert outcome.stdout_path == str(tmp_path / "a%2Fb.out")
    assert Path(outcome.stdout_path).read_text() == "out"
    assert outcome.stdout is None


def test_an_executable_whose_files_are_elsewhere_has_the_tail_that_radical_pilot_kept(ledger: Ledger) -> None:
    hold(ledger, ComputeTask(executable="x"))
    [outcome] = told(ledger, "DONE", exit_code=0, stdout="tail", stderr="", sandbox="sftp://far/away")
    assert isinstance(outcome, Outcome)
    assert outcome.stdout == "tail"


def test_a_program_that_removed_its_own_files_has_the_tail_that_radical_pilot_kept(
    ledger: Ledger, tmp_path: Path
) -> None:
    hold(ledger, ComputeTask(executable="x"))
    (tmp_path / "task.7.out").write_text("out")
    [outcome] = told(ledger, "DONE", sandbox=f"file://localhost{tmp_path}/", exit_code=0, stdout="tail", stderr="")
    assert isinstance(outcome, Outcome)
    assert (outcome.state, outcome.stdout, outcome.stderr) == (TaskState.DONE, "tail", "")


def test_a_task_whose_output_cannot_be_fetched_fails_alone(tmp_path: Path) -> None:
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


def test_an_executable_that_fails_says_its_exit_code_and_its_last_words(ledger: Ledger, tmp_path: Path) -> None:
    outcome = executable(ledger, tmp_path, ComputeTask(executable="x"), "FAILED", "oh no", exit_code=3)
    assert isinstance(outcome.exception, TaskExecutionError)
    assert outcome.exception.exit_code == 3
    assert "oh no" in str(outcome.exception)


def test_an_executable_that_is_missing_is_named(ledger: Ledger, tmp_path: Path) -> None:
    said = "/p/task.7.exec.sh: line 56: /no/such: No such file or directory\n"
    outcome = executable(ledger, tmp_path, ComputeTask(executable="/no/such"), "FAILED", said, exit_code=127)
    assert outcome.exit_code is None
    assert "could not start '/no/such': No such file or directory" in str(outcome.exception)


def test_a_program_that_returns_127_itself_was_started(ledger: Ledger, tmp_path: Path) -> None:
    outcome = executable(ledger, tmp_path, ComputeTask(executable="x"), "FAILED", "mine", exit_code=127)
    assert outcome.exit_code == 127


def test_a_signal_is_told_from_an_exit_code_by_what_the_shell_says(ledger: Ledger, tmp_path: Path) -> None:
    said = "/p/task.7.exec.sh: line 61: 31552 Killed                  sh -c x\n"
    assert executable(ledger, tmp_path, ComputeTask(executable="x"), "FAILED", said, exit_code=137).exit_code == -9
    assert executable(ledger, tmp_path, ComputeTask(executable="x"), "FAILED", "", exit_code=137).exit_code == 137


def test_a_task_that_radical_pilot_itself_fails_says_why(ledger: Ledger) -> None:
    hold(ledger, ComputeTask(executable="x"))
    [outcome] = told(ledger, "FAILED", exception="ValueError", detail="no launcher found")
    assert isinstance(outcome, Outcome)
    assert "no launcher found" in str(outcome.exception)


def test_a_task_is_canceled_only_if_somebody_here_asked(ledger: Ledger) -> None:
    task = ComputeTask(executable="x")
    hold(ledger, task)
    assert ledger.cancel([task]) == ({task.uid: CancelResult.NEVER_STARTED}, ["task.7"], [])
    assert ends(told(ledger, "CANCELED")) == {task.uid: TaskState.CANCELED}
    hold(ledger, task)
    [outcome] = told(ledger, "CANCELED")
    assert isinstance(outcome, Outcome)
    assert isinstance(outcome.exception, WorkerLostError)


def test_a_task_that_its_timeout_stopped_says_so(ledger: Ledger) -> None:
    hold(ledger, ComputeTask(executable="x", backend_options={"timeout": 2.5}))
    [outcome] = told(ledger, "CANCELED")
    assert isinstance(outcome, Outcome)
    assert "timeout of 2.5 seconds" in str(outcome.exception)


def test_a_report_that_comes_twice_counts_once(ledger: Ledger) -> None:
    hold(ledger, ComputeTask(executable="x"))
    assert len(told(ledger, "DONE", exit_code=0)) == 1
    assert told(ledger, "FAILED") == []


def test_the_output_that_is_kept_is_bounded(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rhapsody_radical.ledger.KEEP", 4)
    outcome = executable(ledger, tmp_path, ComputeTask(executable="x"), "DONE", "abcdefghijkl", exit_code=0)
    assert outcome.stderr == "abcd\n[... 4 bytes left out ...]\nijkl"


def test_tasks_of_a_unit_end_one_by_one_while_it_runs(ledger: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "unit"
    (first, second), _ = unit_of(ledger, folder, 2)
    assert told(ledger, "AGENT_EXECUTING") == []
    assert ledger.watches
    assert ledger.look() == []  # its Python is still starting
    write(folder)
    [started] = ledger.look()
    assert isinstance(started, Started)
    assert started.uid == first.uid
    write(folder, first)
    events = ledger.look()
    assert [type(event) for event in events] == [Outcome, Started]
    assert events[1].uid == second.uid  # type: ignore[union-attr]
    write(folder, second)
    assert ends(told(ledger, "DONE", exit_code=0)) == {second.uid: TaskState.DONE}
    assert not ledger.watches
    assert not folder.exists()


def test_a_frame_that_is_half_written_is_left_for_later(ledger: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "unit"
    [task], _ = unit_of(ledger, folder, 1)
    told(ledger, "AGENT_EXECUTING")
    whole = unit.encode(task.uid.encode())
    (folder / unit.FRAMES).write_bytes(whole[:10])
    assert ends(ledger.look()) == {}
    (folder / unit.FRAMES).write_bytes(whole)
    assert ends(ledger.look()) == {task.uid: TaskState.DONE}


def test_when_a_unit_dies_its_running_task_fails_and_the_others_go_back(ledger: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "unit"
    (first, second, third), _ = unit_of(ledger, folder, 3)
    told(ledger, "AGENT_EXECUTING")
    write(folder, first)
    events = told(ledger, "FAILED", exit_code=139, stderr="segmentation fault")
    assert ends(events) == {first.uid: TaskState.DONE, second.uid: TaskState.FAILED}
    lost = next(event.exception for event in events if isinstance(event, Outcome) and event.uid == second.uid)
    assert isinstance(lost, WorkerLostError)
    assert "exit code 139\nsegmentation fault" in str(lost)
    assert [event.uids for event in events if isinstance(event, Returned)] == [[third.uid]]


def test_when_a_unit_never_came_to_run_all_of_it_fails(ledger: Ledger, tmp_path: Path) -> None:
    (first, second), _ = unit_of(ledger, tmp_path / "unit", 2)
    events = told(ledger, "FAILED", exit_code=127, stderr="no python here")
    assert ends(events) == {first.uid: TaskState.FAILED, second.uid: TaskState.FAILED}


def test_a_waiting_unit_is_recalled_and_the_tasks_that_nobody_canceled_go_back(ledger: Ledger, tmp_path: Path) -> None:
    (first, second), _ = unit_of(ledger, tmp_path / "unit", 2)
    (tmp_path / "unit" / unit.PAYLOAD).touch()
    results, ending, events = ledger.cancel([second])
    assert (results, ending) == ({second.uid: CancelResult.NEVER_STARTED}, ["task.7"])
    assert ends(events) == {second.uid: TaskState.CANCELED}
    assert [event.uids for event in events if isinstance(event, Returned)] == [[first.uid]]
    assert told(ledger, "CANCELED") == []


def test_a_unit_that_has_begun_is_ended_only_once_it_has_halted(ledger: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "unit"
    (first, _), _ = unit_of(ledger, folder, 2)
    told(ledger, "AGENT_EXECUTING")
    write(folder)
    ledger.look()
    assert ledger.cancel([first]) == ({first.uid: CancelResult.STOPPED}, [], [])
    assert json.loads((folder / unit.CANCEL).read_text()) == [first.uid]
    assert ledger.halted() == []
    (folder / unit.HALTED).touch()
    assert ledger.halted() == ["task.7"]
    assert ledger.halted() == []


def test_a_unit_of_which_all_is_canceled_is_ended_at_once(ledger: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "unit"
    (first, second), _ = unit_of(ledger, folder, 2)
    told(ledger, "AGENT_EXECUTING")
    write(folder)
    ledger.look()
    ledger.cancel([second])
    results, ending, _ = ledger.cancel([first])
    assert (results, ending) == ({first.uid: CancelResult.STOPPED}, ["task.7"])
    assert ends(told(ledger, "CANCELED")) == dict.fromkeys((first.uid, second.uid), TaskState.CANCELED)


def test_the_task_that_begins_behind_one_that_was_passed_over_has_started(ledger: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "unit"
    (first, second, third), _ = unit_of(ledger, folder, 3)
    told(ledger, "AGENT_EXECUTING")
    write(folder, second)
    assert [event.uid for event in ledger.look() if isinstance(event, Started)] == [first.uid]
    write(folder, first)
    assert [event.uid for event in ledger.look() if isinstance(event, Started)] == [third.uid]


def test_when_the_running_task_of_a_unit_is_canceled_the_others_go_back(ledger: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "unit"
    (first, second), _ = unit_of(ledger, folder, 2)
    told(ledger, "AGENT_EXECUTING")
    write(folder)
    ledger.look()
    ledger.cancel([first])
    events = told(ledger, "CANCELED")
    assert ends(events) == {first.uid: TaskState.CANCELED}
    assert [event.uids for event in events if isinstance(event, Returned)] == [[second.uid]]


def test_no_task_of_a_unit_that_ended_is_left_without_an_end(ledger: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "unit"
    (first, second), _ = unit_of(ledger, folder, 2)
    told(ledger, "AGENT_EXECUTING")
    write(folder, first)
    assert ends(told(ledger, "DONE", exit_code=0)) == {first.uid: TaskState.DONE, second.uid: TaskState.FAILED}
