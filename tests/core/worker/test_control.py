"""What runs inside a worker: who may begin, what runs, and the record of it that outlives the worker."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

from rhapsody.worker import BatchControl, KeptFrames, Progress, kept_frames, read_progress


def test_withdrawn_task_does_not_begin() -> None:
    """What is withdrawn before it is claimed never begins, and is named."""
    control = BatchControl()
    assert control.withdraw(["b"]) == ["b"]
    assert [control.claim(uid) for uid in "abc"] == [True, False, True]


def test_begun_task_is_not_withdrawn() -> None:
    """A task that has begun, and one that has ended, stay as they are."""
    control = BatchControl()
    control.claim("a")
    control.report(b"")
    control.claim("b")
    assert control.withdraw(["a", "b", "c"]) == ["c"]


def test_control_knows_what_runs() -> None:
    """A task runs from its claim to its report; one that is neither ended nor withdrawn may."""
    control = BatchControl()
    control.withdraw(["c"])
    control.claim("a")
    assert (control.running, control.may_run("a"), control.may_run("b"), control.may_run("c")) == (
        "a",
        True,
        True,
        False,
    )
    control.report(b"")
    assert (control.running, control.may_run("a")) == (None, False)


def test_note_precedes_the_task() -> None:
    """The record counts what was asked for, left out or not, before the task begins."""
    noted: list[int] = []
    control = BatchControl(noted.append)
    control.withdraw(["b"])
    for uid in "abc":
        control.claim(uid)
    assert noted == [1, 3]


def test_task_begins_or_is_withdrawn() -> None:
    """However a claim and a withdrawal meet, exactly one of them has the task."""
    control, uids = BatchControl(), [str(number) for number in range(5000)]
    withdrawn: list[str] = []

    def withdraw() -> None:
        for uid in reversed(uids):
            withdrawn.extend(control.withdraw([uid]))

    thread = threading.Thread(target=withdraw)
    thread.start()
    begun = [uid for uid in uids if control.claim(uid)]
    thread.join()
    assert sorted(begun + withdrawn) == sorted(uids)


def test_progress_survives_sigkill(tmp_path: Path) -> None:
    """What a worker noted is there after it died."""
    program = (
        "import os, signal, sys; from rhapsody.worker import Progress; progress = Progress(sys.argv[1], 8);"
        "progress.note(progress.reserve(41), 41, 1); progress.note(progress.reserve(42), 42, 7);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "progress"
    ended = subprocess.run([sys.executable, "-c", program, str(path)], timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert read_progress(path) == {41: 1, 42: 7}


def test_oldest_record_is_used_again(tmp_path: Path) -> None:
    """A table remembers as many batches as it has records."""
    progress = Progress(tmp_path / "progress", 3)
    for batch in (1, 2, 3, 4):
        progress.reserve(batch)
    assert progress.begun() == read_progress(tmp_path / "progress") == {2: 0, 3: 0, 4: 0}


def test_workers_share_a_table(tmp_path: Path) -> None:
    """Each writes records of its own."""
    tables = [Progress(tmp_path / "progress", 2) for _ in range(2)]
    for record, table in enumerate(tables):
        table.note(record, 10 + record, 5)
    assert tables[0].begun() == {10: 5, 11: 5}


def test_missing_progress_is_none(tmp_path: Path) -> None:
    """Nothing is known where there is no file."""
    assert read_progress(tmp_path / "no such file") is None


def test_kept_frames_survive_sigkill(tmp_path: Path) -> None:
    """The frames that a worker had kept of a batch are there after it died, and no other's."""
    program = (
        "import os, signal, sys; from rhapsody.worker import KeptFrames; kept = KeptFrames(sys.argv[1], 2, 1);"
        "kept.begin(41); kept.keep(b'of another'); kept.begin(42); kept.keep(b'one,'); kept.keep(b'two');"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "frames"
    ended = subprocess.run([sys.executable, "-c", program, str(path)], timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert kept_frames(path, 42) == b"one,two"
    assert kept_frames(path, 41) == b""


def test_full_page_keeps_the_latest(tmp_path: Path) -> None:
    """A page that is full is written from its start; a frame that is longer than a page is not kept."""
    kept = KeptFrames(tmp_path / "frames", 1, 0)
    kept.begin(1)
    kept.keep(b"a" * 2**19)
    kept.keep(b"b" * 2**19)
    assert kept_frames(tmp_path / "frames", 1) == b"b" * 2**19
    kept.keep(b"c" * 2**20)
    assert kept_frames(tmp_path / "frames", 1) == b""
    kept.keep(b"d")
    assert kept_frames(tmp_path / "frames", 1) == b"d"


def test_missing_frames_are_none(tmp_path: Path) -> None:
    """Nothing was kept where there is no file."""
    assert kept_frames(tmp_path / "no such file", 1) == b""
