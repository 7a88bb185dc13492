"""`rhapsody report`: the page and the files, from the journal of a real session."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rhapsody.api import ComputeTask, Session
from rhapsody.cli import group
from rhapsody.observers.journal.reader import JournalReader
from rhapsody.observers.journal.store import Store
from rhapsody.observers.report.figures import distribution, figures
from rhapsody.observers.report.page import page

from .journals import rows

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_OFF = ("gpu", "quic", "background-networking", "component-update", "sync")
FLAGS = [
    *("--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{feature}" for feature in _OFF)),
    *("--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom"),
]
_HOSTILE = "</script><b id='tasks'>&amp;<!--"


def _work(n: int) -> int:
    if n % 10 == 7:
        raise ValueError(f"{_HOSTILE} {n}")
    return n


def _flaky(marks: Path) -> int:
    tries = len(list(marks.iterdir()))
    (marks / str(tries)).touch()
    if tries < 2:
        raise OSError("not yet")
    return tries


@pytest.fixture
async def session(work_dir: Path, tmp_path: Path) -> Session:
    """A session that has ended: 45 tasks done, 5 failed for one reason, an executable, one done at the third try."""
    (tmp_path / "marks").mkdir()
    async with Session(uid="seen", journal=True) as session:
        tasks = [ComputeTask(function=_work, args=(n,)) for n in range(50)]
        again = ComputeTask(uid="again", function=_flaky, args=(tmp_path / "marks",), retries=5)
        await session.submit_tasks([*tasks, ComputeTask(executable="true"), again])
        await session.wait_tasks()
    return session


def _report(*arguments: object) -> str:
    done = CliRunner().invoke(group, ["report", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


async def test_figures_are_the_journals(session: Session) -> None:
    """States, times and errors of the figures are those that SQL finds."""
    with JournalReader(session.sandbox) as journal:
        found = figures(journal)
    assert found["states"] == dict(rows(session, "SELECT state, count(*) FROM tasks GROUP BY state"))
    [(busy,)] = rows(session, "SELECT sum(ended - started) FROM tasks")
    assert found["busy_seconds"] == pytest.approx(busy)
    assert [(error["type"], error["tasks"]) for error in found["errors"]] == [("ValueError", 5)]
    assert found["curves"]["DONE"][-1] == 47
    assert found["runtimes"]["count"] == sum(found["runtimes"]["bins"]) == 52
    assert len(found["timeline"]["bars"]) == 52
    assert {name["name"]: name["tasks"] for name in found["names"]} == {
        f"{__name__}._work": 50, "true": 1, f"{__name__}._flaky": 1,
    }  # fmt: skip


async def test_attempts_are_the_journals(session: Session) -> None:
    """Each attempt at a task that was tried again is shown, with its error, place and time; others are not."""
    found = rows(session, "SELECT attempt, started, ended, error FROM attempts ORDER BY attempt")
    assert [error for *_, error in found] == ["OSError", "OSError", None]
    with JournalReader(session.sandbox) as journal:
        shown = figures(journal)
        listed = [(one.uid, one.attempt, one.started, one.ended, one.error) for one in journal.attempts()]
    assert listed == [("again", *row) for row in found]
    assert dict(shown["attempts"]) == {1: 51, 3: 1}
    retries = shown["retries"]
    assert (retries["tasks"], retries["again"], retries["errors"]) == (1, 2, [("OSError", 2)])
    assert [(one["attempt"], one["error"]) for one in retries["listed"]] == [(1, "OSError"), (2, "OSError"), (3, "")]
    assert all(one["seconds"] >= 0 and one["worker"] for one in retries["listed"])
    written = json.loads(_report(session.sandbox, "--json"))["attempts"]
    assert [(one["uid"], one["attempt"], one["started"], one["ended"], one["error"]) for one in written] == listed


def _large(folder: Path, tasks: int, workers: int) -> None:
    """Write a journal of many tasks, each of a second, one after the other on each worker."""
    store = Store(folder)
    store.begin("large", ["concurrent"])
    [(began,)] = rows(folder, "SELECT started FROM runs")
    call = (1, "k", "function", "m.work", "m.work()", "concurrent", None, None)
    lines: list[Any] = []
    for n in range(tasks):
        start = began + n // workers
        state = "FAILED" if n % 10_007 == 0 else "DONE"
        lines.append((n + 1, f"t{n}", 1, state, began, start, start + 0.5 + (n % 5) / 10, n % workers + 1, 1))
    names = [(n + 1, f"node{n:03d}:1") for n in range(workers)]
    store.write({"calls": call, "workers": [*chain(*names)], "tasks": [*chain(*lines)]})
    store.end()
    store.close()


def test_timeline_of_many_tasks_is_added_up(tmp_path: Path) -> None:
    """A hundred thousand tasks on a thousand workers are a drawing of bounded size that has all of their time."""
    _large(tmp_path, 100_000, 1000)
    with JournalReader(tmp_path) as journal:
        found = figures(journal)
    drawing = found["timeline"]
    assert found["lanes"] == 1000
    assert len(drawing["rows"]) <= 48
    assert len(drawing["cells"]) <= 48 * 300
    assert any(failed for *_, failed in drawing["cells"])
    width = found["seconds"] / drawing["columns"]
    shown = sum(busy * width * drawing["share"] for _, _, busy, _ in drawing["cells"])
    assert shown == pytest.approx(found["busy_seconds"], rel=0.05)  # the last row has fewer lanes
    step = found["seconds"] / (len(found["curves"]["times"]) - 1)
    assert sum(found["curves"]["concurrency"]) * step == pytest.approx(found["busy_seconds"], rel=0.001)
    assert len(page(found)) < 1_500_000


def test_distribution_counts_each_value() -> None:
    """A histogram has each value in one bin, also equal ones, none and zero."""
    for values in ([1.0], [0.0, 0.0], [2.0] * 100, [10.0**n for n in range(-8, 5)]):
        assert sum(distribution(values)["bins"]) == len(values)
    assert distribution([]) == {"count": 0}


class _Page(HTMLParser):
    """Collects the text of elements with an id, and what the page would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.links: list[str] = []
        self._id = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._id = given.get("id") or self._id
        self.links += [value for name, value in attrs if name in ("src", "href") and value and value != "data:,"]

    def handle_data(self, data: str) -> None:
        self.texts[self._id] = self.texts.get(self._id, "") + data


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
async def test_page_in_chromium(session: Session, tmp_path: Path) -> None:
    """A browser shows the journal's figures and logs no error; nothing is fetched, and no text of a task is markup."""
    assert _report(session.sandbox).strip() == str(session.sandbox / "report.html")
    done = subprocess.run(
        [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"file://{session.sandbox}/report.html"],
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    shown = _Page(done.stdout)
    assert shown.links == []
    assert shown.texts["tasks"].startswith("52")
    assert re.sub(r"\s+", " ", shown.texts["states"]).startswith("DONE 47FAILED 5")
    assert f"{_HOSTILE} 7" in shown.texts["errors"]
    assert "1 task, 2 times in all; attempts failed with OSError (2)" in shown.texts["retries"]
    assert done.stdout.count("<polygon") >= 4
    assert done.stdout.count("<title>") >= 52


async def test_exports(session: Session, tmp_path: Path) -> None:
    """--csv, --json and --chrome-trace have every task of the journal."""
    table = list(csv.DictReader(io.StringIO(_report(session.sandbox, "--csv"))))
    assert [row["uid"] for row in table] == [uid for (uid,) in rows(session, "SELECT uid FROM tasks ORDER BY id")]
    assert sum(row["state"] == "FAILED" and row["error_type"] == "ValueError" for row in table) == 5
    tasks = json.loads(_report(session.sandbox, "--json"))["tasks"]
    assert [(task["uid"], task["started"]) for task in tasks] == rows(session, "SELECT uid, started FROM tasks")
    _report(session.sandbox, "--chrome-trace", "-o", tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == 52
    ends: dict[Any, float] = {}
    for span in spans:  # those of one thread do not overlap
        assert span["ts"] >= ends.get((span["pid"], span["tid"]), 0) - 1
        ends[span["pid"], span["tid"]] = span["ts"] + span["dur"]


def test_report_needs_a_journal(tmp_path: Path) -> None:
    """Without a journal, or with one of a newer version, the command says so in a sentence."""
    done = CliRunner().invoke(group, ["report", str(tmp_path)])
    assert done.exit_code == 1
    assert "there is no journal" in done.stderr
