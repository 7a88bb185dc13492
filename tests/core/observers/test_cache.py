"""Tasks that are marked `cache`, and the command that lists, shows and removes what was kept."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rhapsody.api import ComputeTask, InvalidTaskError, Session
from rhapsody.cli import group
from rhapsody.observers.cache import FOLDER

pytestmark = pytest.mark.usefixtures("leaves_nothing")
RUNS: list[Any] = []


def counted(*values: Any) -> list[Any]:
    RUNS.append(values)
    if values == ("bad",):
        raise ValueError(values)
    return [*values]


@pytest.fixture(autouse=True)
def _no_runs() -> None:
    RUNS.clear()


async def _run(*tasks: ComputeTask, **session: Any) -> list[ComputeTask]:
    async with Session(**session) as opened:
        await opened.submit_tasks(tasks)
        return await opened.wait_tasks(tasks)


def _cached(*args: Any) -> ComputeTask:
    return ComputeTask(function=counted, args=args, cache=True)


async def test_results_are_kept_across_sessions(work_dir: Path) -> None:
    """A task of the same content has the result of an earlier session; another content, and a failure, run."""
    for runs in ([(1,), ("bad",)], [("bad",), (2,)]):
        first = _cached(1)
        tasks = await _run(first, _cached("bad"), ComputeTask(function=len, args=(first,), cache=True))
        if runs[-1] == (2,):
            await _run(_cached(2))
        assert sorted(RUNS, key=str) == sorted(runs, key=str)
        assert [str(task.state) for task in tasks] == ["DONE", "FAILED", "DONE"]
        assert [task.return_value for task in tasks] == [[1], None, 1]
        RUNS.clear()


async def test_executables_are_cached(work_dir: Path) -> None:
    """An executable has its output and exit code again; one whose output is captured in files runs."""
    for length in (1, 1):
        (task,) = await _run(ComputeTask(executable="echo x >> ran; echo out", shell=True, cache=True))
        assert (task.stdout, task.exit_code, str(task.state)) == ("out\n", 0, "DONE")
        assert len(Path("ran").read_text().split()) == length
    for length, file in enumerate(({"capture_stdio": True}, {"stdout": Path("out")}), 2):
        line = "echo x >> ran; echo out"
        await _run(ComputeTask(executable=line, shell=True, cache=True, **file))  # type: ignore[arg-type]
        assert len(Path("ran").read_text().split()) == length


async def test_damaged_result_is_not_used(work_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A task whose kept result cannot be read runs again, and a warning says so."""
    await _run(_cached(1))
    (kept,) = (work_dir / FOLDER).iterdir()
    kept.write_bytes(b"x")
    (task,) = await _run(_cached(1))
    assert task.return_value == [1]
    assert RUNS == [(1,), (1,)]
    assert "result_not_recalled" in caplog.text


async def test_cache_is_true_or_false() -> None:
    """Another value is refused where the task is described."""
    with pytest.raises(InvalidTaskError, match="cache must be True or False"):
        ComputeTask(function=len, cache="yes")  # type: ignore[arg-type]


async def test_journals_are_listed_and_shown(work_dir: Path) -> None:
    """The command lists sessions with their tasks, shows one with its failures, and passes over what it cannot read."""
    await _run(_cached(1), _cached("bad"), uid="kept", journal=True)
    (work_dir / "other").mkdir()
    (work_dir / "other" / "journal.db").write_text("no journal")
    listed = CliRunner().invoke(group, ["journal", "ls"])
    assert listed.exit_code == 0
    (line,) = (line for line in listed.output.splitlines() if line.startswith("kept"))
    assert line.endswith("1 DONE, 1 FAILED")
    shown = CliRunner().invoke(group, ["journal", "show", "kept"]).output
    assert "ValueError: ('bad',)" in shown
    assert "1 FAILED" in shown
    assert "there is no journal" in CliRunner().invoke(group, ["journal", "show", "nothing"]).output


async def test_old_journals_are_removed(work_dir: Path) -> None:
    """Old journals and results go, new ones and those that are written stay, and so do a session's other files."""
    await _run(_cached(1), uid="old", journal=True)
    (work_dir / "old" / "mine.txt").write_text("mine")
    month = time.time() - 31 * 86_400
    (kept,) = (work_dir / FOLDER).iterdir()
    async with Session(uid="open", journal=True) as session:
        await session.submit_tasks([_cached(2)])
        await session.wait_tasks()
        for path in (work_dir / "old" / "journal.db", work_dir / "open" / "journal.db", kept):
            os.utime(path, (month, month))
        dry = CliRunner().invoke(group, ["journal", "prune", "--dry-run"]).output
        assert (work_dir / "old" / "journal.db").exists()
        pruned = CliRunner().invoke(group, ["journal", "prune", str(work_dir)]).output
        assert len(dry.splitlines()) == len(pruned.splitlines()) == 2
    assert [path.name for path in (work_dir / "old").iterdir()] == ["mine.txt"]
    assert (work_dir / "open" / "journal.db").exists()
    assert not kept.exists()
