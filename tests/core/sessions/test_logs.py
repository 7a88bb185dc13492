"""What a session logs of itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from rhapsody.api import Session, SettingsError

_SCRIPT = """
import asyncio, time
from rhapsody.api import *

def work(n):
    if n == 1:
        raise ValueError(n)

async def main():
    async with Session(["concurrent"], uid="logged") as session:
        tasks = [ComputeTask(function=work, args=(n,)) for n in range(4)]
        tasks.append(ComputeTask(executable="sleep", arguments=[60]))
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks[:4])
        await session.cancel_tasks(tasks[4:])

asyncio.run(main())
"""
_COUNTS = {"tasks": 5, "done": 3, "failed": 1, "canceled": 1}


def _logged(**environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        env={**os.environ, "RHAPSODY_LOG_LEVEL": "INFO", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stderr.splitlines()


def test_summaries_count_tasks() -> None:
    """At its end a session logs a line for each backend and one for itself, with what became of the tasks."""
    records = [json.loads(line) for line in _logged(RHAPSODY_LOG_FORMAT="json")]
    assert {"timestamp", "level", "logger"} <= records[0].keys()
    assert {record["session"] for record in records} == {"logged"}
    (started,) = (record for record in records if record["event"] == "backend_started")
    assert started["backend"] == "concurrent"
    (backend,) = (record for record in records if record["event"] == "backend_summary")
    (session,) = (record for record in records if record["event"] == "session_summary")
    assert (backend["session"], backend["backend"], backend["level"]) == ("logged", "concurrent", "INFO")
    assert backend.items() >= _COUNTS.items()
    assert session.items() >= (_COUNTS | {"session": "logged", "problems": 0}).items()
    assert session["seconds"] > 0


def test_text_is_the_default() -> None:
    """Unless JSON is asked for, a record is its event and fields as text."""
    (line,) = (line for line in _logged() if "session_summary" in line)
    assert "event=session_summary session=logged" in line
    assert "tasks=5 done=3 failed=1 canceled=1" in line


def test_unknown_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A format that is none is refused where a session is made."""
    monkeypatch.setenv("RHAPSODY_LOG_FORMAT", "yaml")
    with pytest.raises(SettingsError, match="RHAPSODY_LOG_FORMAT is 'yaml'"):
        Session()
