"""The journal of a session that is killed: it opens, says nothing false, and misses little."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .journals import rows

# Writes down each transition as it is reported, at once, beside the journal.
_SCRIPT = """
import asyncio, json, os, sys, time
from rhapsody.api import *
from rhapsody.plugin import hookimpl

class Witness:
    def __init__(self):
        self.file = os.open("seen", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @hookimpl
    def rhapsody_tasks_changed(self, transitions):
        now = time.time()
        lines = [json.dumps([now, change.task.uid, change.new.value, change.at]) for change in transitions]
        os.write(self.file, ("\\n".join(lines) + "\\n").encode())

def square(n):
    time.sleep(0.001 * (n % 3))
    return [n, n * n]

async def main():
    async with Session(uid="s", journal=True) as session:
        session.observe(Witness())
        print("open", flush=True)
        for start in range(0, 10**9, 20):
            tasks = [ComputeTask(function=square, args=(n,), uid=f"n{n}") for n in range(start, start + 20)]
            await session.submit_tasks(tasks)
            await session.wait_tasks()

asyncio.run(main())
"""


def _kill_after(seconds: float, folder: Path) -> float:
    """Kill a session some time after it opened, and return when."""
    with subprocess.Popen([sys.executable, "-c", _SCRIPT], cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        time.sleep(seconds)
        process.kill()
        return time.time()


def _examine(folder: Path, killed: float, behind: float) -> None:
    assert rows(folder / "s", "PRAGMA integrity_check") == [("ok",)]
    lines = (folder / "seen").read_text().splitlines(keepends=True)
    seen = [json.loads(line) for line in lines if line.endswith("\n")]
    happened = {(uid, state, at) for _, uid, state, at in seen}
    history = set(rows(folder / "s", "SELECT uid, h.state, at FROM history h JOIN tasks t ON h.task = t.id"))
    assert history <= happened, "the journal says what did not happen"
    assert {(uid, state, at) for now, uid, state, at in seen if now < killed - behind} <= history
    for uid, value in rows(folder / "s", "SELECT uid, value FROM results JOIN tasks ON task = id"):
        assert pickle.loads(value) == [int(uid[1:]), int(uid[1:]) ** 2]
    done = rows(folder / "s", "SELECT count(*) FROM tasks WHERE state = 'DONE'")
    assert done == rows(folder / "s", "SELECT count(*) FROM results")
    assert rows(folder / "s", "SELECT ended FROM runs") == [(None,)]


@pytest.mark.parametrize("moment", range(6))
def test_killed_session_leaves_a_journal(work_dir: Path, moment: int) -> None:
    """After SIGKILL the file opens, holds only what happened, and misses only the last moments."""
    killed = _kill_after(random.Random(moment).uniform(0, 1.5), work_dir)
    _examine(work_dir, killed, behind=5)


@pytest.mark.nightly
@pytest.mark.serial
@pytest.mark.parametrize("moment", range(100))
def test_killed_session_misses_half_a_second(work_dir: Path, moment: int) -> None:
    """At any moment, what is lost is of the last half second."""
    killed = _kill_after(random.Random(1000 + moment).uniform(0, 1.5), work_dir)
    _examine(work_dir, killed, behind=0.5)
