"""The journal: what it holds, and what becomes of a session whose journal cannot be written."""

from __future__ import annotations

import pickle
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rhapsody.api import ComputeTask, JournalError, Session, SessionError
from rhapsody.observers.journal.store import Store, is_on_network

from .journals import rows

pytestmark = pytest.mark.usefixtures("leaves_nothing")


def _double(values: list[int]) -> list[int]:
    return [2 * value for value in values]


def _fail(text: str) -> None:
    raise ValueError(text)


async def _run(session: Session, *tasks: ComputeTask) -> None:
    async with session:
        await session.submit_tasks(tasks)
        await session.wait_tasks()


async def test_journal_holds_tasks(work_dir: Path) -> None:
    """Each task has its call, its state and its three times."""
    tasks = [ComputeTask(function=_double, args=([n],), tag="round") for n in range(20)]
    await _run(session := Session(uid="kept", journal=True), *tasks)
    found = rows(session, "SELECT uid, state, submitted, started, ended, attempt FROM tasks ORDER BY id")
    assert found == [(t.uid, "DONE", t.submitted_at, t.started_at, t.ended_at, 1) for t in tasks]
    calls = rows(session, "SELECT DISTINCT c.name, c.backend, c.tag FROM tasks t JOIN calls c ON t.call = c.id")
    assert calls == [(f"{__name__}._double", "concurrent", "round")]
    workers = rows(session, "SELECT DISTINCT w.name FROM tasks t JOIN workers w ON t.worker = w.id")
    assert workers == [(tasks[0].ran_on,)]


async def test_history_has_transitions(work_dir: Path) -> None:
    """The view `history` lists every transition with its time."""
    await _run(session := Session(journal=True), task := ComputeTask(function=_double, args=([1],)))
    assert rows(session, "SELECT state, at FROM history ORDER BY at, state = 'DONE'") == [
        ("QUEUED", task.submitted_at), ("RUNNING", task.started_at), ("DONE", task.ended_at),
    ]  # fmt: skip


async def test_results_are_pickled(work_dir: Path) -> None:
    """Results are in the table; a large one is in a file, and None needs no row."""
    small, large, none = (
        ComputeTask(function=_double, args=([1, 2],)),
        ComputeTask(function=bytes, args=(500_000,)),
        ComputeTask(function=print, kwargs={"end": ""}),
    )
    await _run(session := Session(journal=True), small, large, none)
    found = {uid: (value, file) for uid, value, file in rows(
        session, "SELECT uid, value, file FROM results JOIN tasks ON task = id"
    )}  # fmt: skip
    assert pickle.loads(found[small.uid][0]) == [2, 4]
    assert pickle.loads((session.sandbox / found[large.uid][1]).read_bytes()) == bytes(500_000)
    assert none.uid not in found


async def test_result_is_kept_as_returned(work_dir: Path) -> None:
    """What the program does with a result does not change the journal's."""
    async with Session(journal=True) as session:
        task = ComputeTask(function=_double, args=([1, 2],))
        await session.submit_tasks([task])
        (await task).return_value.clear()
    assert pickle.loads(rows(session, "SELECT value FROM results")[0][0]) == [2, 4]


async def test_result_without_pickle_is_named(work_dir: Path) -> None:
    """A result that cannot be pickled is named as missing, with the reason."""
    await _run(session := Session(journal=True), ComputeTask(function=threading.Lock))
    [(value, missing)] = rows(session, "SELECT value, missing FROM results")
    assert value is None
    assert "lock cannot be pickled" in missing


async def test_errors_have_tracebacks(work_dir: Path) -> None:
    """A failed task has its error's type, message and traceback; an executable its streams and exit code."""
    tasks = [
        ComputeTask(function=_fail, args=("so it is",)),
        ComputeTask(executable="echo out; echo err >&2; exit 3", shell=True),
    ]
    await _run(session := Session(journal=True), *tasks)
    [function, executable] = rows(session, "SELECT type, message, traceback FROM errors ORDER BY task")
    assert function[:2] == ("ValueError", "so it is")
    assert "in _fail" in function[2]
    assert executable[0] == "TaskExecutionError"
    assert rows(session, "SELECT exit_code, stdout, stderr FROM results") == [(3, "out\n", "err\n")]


async def test_setting_asks_for_a_journal(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RHAPSODY_JOURNAL=1 gives each session a journal, journal=False takes it away, and nonsense is refused."""
    monkeypatch.setenv("RHAPSODY_JOURNAL", "1")
    await _run(asked := Session(uid="asked"), ComputeTask(function=_double, args=([1],)))
    await _run(without := Session(uid="without", journal=False), ComputeTask(function=_double, args=([1],)))
    assert [(session.sandbox / "journal.db").exists() for session in (asked, without)] == [True, False]
    monkeypatch.setenv("RHAPSODY_JOURNAL", "maybe")
    with pytest.raises(ValueError, match="RHAPSODY_JOURNAL is 'maybe'"):
        Session()
    with pytest.raises(SessionError, match="journal is True, False"):
        Session(journal="maybe")


@pytest.fixture(params=["newer", "locked", "foreign", "no folder"])
def unusable(request: pytest.FixtureRequest, work_dir: Path) -> Iterator[str]:
    """A folder `s` whose journal cannot be written; the text of the error."""
    folder = work_dir / "s"
    if request.param == "no folder":
        folder.write_text("a file")
        yield "cannot be written"
        return
    store = Store(folder)
    if request.param == "locked":
        yield "two sessions cannot share a folder"
        store.close()
        return
    store.close()
    if request.param == "newer":
        connection = sqlite3.connect(folder / "journal.db")
        connection.execute("PRAGMA user_version=999")
        connection.close()
        yield "has version 999"
    else:
        (folder / "journal.db").write_bytes(b"no database at all" * 100)
        yield "not a database"


async def test_tasks_go_on_without_journal(unusable: str, caplog: pytest.LogCaptureFixture) -> None:
    """Where the journal cannot be written, the tasks run, and the log has the reason."""
    await _run(Session(uid="s", journal=True), task := ComputeTask(function=_double, args=([1],)))
    assert task.return_value == [2]
    assert unusable in caplog.text


async def test_required_journal_refuses_tasks(unusable: str) -> None:
    """Where the journal is required and cannot be written, tasks are refused."""
    async with Session(uid="s", journal="required") as session:
        with pytest.raises(JournalError, match=unusable):
            await session.submit_tasks([ComputeTask(function=_double, args=([1],))])


def _limit_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))


@pytest.mark.parametrize(("journal", "end"), [(True, "all 5000 done"), ("required", "JournalError")])
def test_full_disk(work_dir: Path, journal: bool | str, end: str) -> None:
    """A disk that is full ends the journal, not the tasks; unless it is required: then it refuses further ones."""
    script = f"""
import asyncio
from rhapsody.api import *
async def main():
    async with Session(uid="s", journal={journal!r}) as session:
        done = 0
        for _ in range(50):
            tasks = [ComputeTask(function=bytes, args=(100,)) for _ in range(100)]
            await session.submit_tasks(tasks)
            done += sum(task.state == "DONE" for task in await session.wait_tasks(tasks))
            await asyncio.sleep(0.05)
        print("all", done, "done")
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], preexec_fn=_limit_files, capture_output=True, text=True, timeout=100
    )
    assert end in done.stdout + done.stderr
    assert rows(work_dir / "s", "PRAGMA integrity_check") == [("ok",)]
    assert (
        rows(work_dir / "s", "SELECT DISTINCT state FROM tasks WHERE state NOT IN ('QUEUED', 'RUNNING', 'DONE')") == []
    )


def test_network_folders_are_known(tmp_path: Path) -> None:
    """The file system of a folder is that of the longest mount point above it."""
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"disk / ext4 rw 0 0\nserver:/home {tmp_path}/home nfs4 rw 0 0\nram {tmp_path}/home/ram tmpfs rw 0 0\n"
    )
    answers = [is_on_network(tmp_path / name, mounts) for name in ("", "home", "home/me", "home/ram/s", "homely")]
    assert answers == [False, True, True, False, False]


def test_network_file_has_no_wal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that machines share, the file is written without a write-ahead log."""
    monkeypatch.setattr("rhapsody.observers.journal.store.is_on_network", lambda folder: True)
    store = Store(tmp_path)
    store.begin("s", ["concurrent"])
    assert rows(tmp_path, "PRAGMA journal_mode") == [("delete",)]
    store.close()


async def test_waiting_tasks_have_a_history(work_dir: Path) -> None:
    """A task that waits for another has its transitions in `history`, WAITING among them."""
    first = ComputeTask(function=_double, args=([1],))
    second = ComputeTask(function=_double, args=(first,))
    await _run(session := Session(journal=True), first, second)
    query = f"SELECT h.at, h.state FROM history h JOIN tasks t ON h.task = t.id WHERE uid = '{second.uid}'"
    life = ["WAITING", "QUEUED", "RUNNING", "DONE"]
    found = sorted(rows(session, query), key=lambda row: (row[0], life.index(row[1])))  # a view has no order of its own
    assert [state for _, state in found] == life
    assert rows(session, "SELECT count(DISTINCT key) FROM calls") == [(2,)]


async def test_attempts_have_rows(work_dir: Path) -> None:
    """Each attempt of a task that was tried again has its error, place and times; a task that ran once has no rows."""
    failing = ComputeTask(executable="false", retries=2)
    session = Session(journal=True)
    await _run(session, failing, ComputeTask(function=_double, args=([1],)))
    query = "SELECT a.attempt, a.error, w.name, a.started, a.ended FROM attempts a JOIN workers w ON a.worker = w.id"
    assert rows(session, query) == [
        (number, "TaskExecutionError", attempt.ran_on, attempt.started_at, attempt.ended_at)
        for number, attempt in enumerate(failing.attempts, 1)
    ]
    assert rows(session, f"SELECT attempt FROM tasks WHERE uid = '{failing.uid}'") == [(3,)]
