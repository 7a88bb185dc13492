"""`rhapsody demo`, and the survey that it runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from .conftest import Environment, rhapsody


def test_demo_counts_its_tasks(environment: Environment) -> None:
    """`demo` surveys the standard library and counts its tasks."""
    done = rhapsody("demo", "--tasks", "30", environment=environment)
    assert "tasks by state: 3" in done.stdout
    assert "DONE" in done.stdout
    assert "FAILED" not in done.stdout
    assert "tasks per second" in done.stdout
    assert "tasks have ended" in done.stdout, "progress is shown line by line where there is no terminal"
    assert "\x1b" not in done.stdout, "no control characters where there is no terminal"


def test_demo_reports_json(environment: Environment) -> None:
    """`demo --json` reports what it found."""
    report = json.loads(rhapsody("demo", "--json", "-n", "40", environment=environment).stdout)
    assert report["states"] == {"DONE": 40 + len(report["packages"])}
    assert sum(package["files"] for package in report["packages"]) == 40
    for package in report["packages"]:
        assert 20 < package["gzip_size"] < package["size"] + 100
        assert package["lines"] > 0


def test_demo_repeats_files() -> None:
    """`demo` starts over for more tasks than files."""
    from rhapsody.cli.demo import _jobs

    jobs = _jobs({"one": ["a.py", "b.py"], "two": ["c.py"]}, 7)
    assert {package: len(tasks) for package, (_, tasks, _) in jobs.items()} == {"one": 5, "two": 2}
    assert jobs["one"][2].arguments[3:] == ["a.py", "b.py"], "a file is compressed once"


def test_demo_takes_backend_options(environment: Environment) -> None:
    """`demo` runs on processes by an option of the backend."""
    arguments = ("-b", "concurrent", "-o", "executor=processes", "-o", "max_workers=2", "-n", "20")
    report = json.loads(rhapsody("demo", "--json", *arguments, environment=environment).stdout)
    assert set(report["states"]) == {"DONE"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-b", "dsk"], "no backend is named 'dsk'; did you mean"),
        (["-o", "max_workers=none"], "max_workers must be a positive whole number"),
        (["-o", "colour=red"], "unexpected keyword argument 'colour'"),
        (["-o", "processes"], "is not KEY=VALUE"),
        (["-n", "0"], "not in the range"),
    ],
)
def test_demo_refuses_in_a_sentence(arguments: list[str], sentence: str, environment: Environment) -> None:
    """`demo` refuses senseless arguments in one sentence."""
    done = rhapsody("demo", *arguments, environment=environment, check=False)
    assert done.returncode != 0
    assert sentence in done.stderr


def test_demo_fails_with_reasons(environment: Environment) -> None:
    """`demo` fails with the reasons if a task fails."""
    done = rhapsody("demo", "-n", "3", environment=environment | {"PATH": "/nowhere"}, check=False)
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    assert "failed task" in done.stdout


def test_demo_draws_a_live_bar(environment: Environment) -> None:
    """`demo` draws a live bar on a terminal."""
    import pty

    terminal, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rhapsody", "demo", "-n", "60"],
        stdin=side,
        stdout=side,
        stderr=side,
        env=environment | {"TERM": "xterm-256color"},
    )
    os.close(side)
    shown = b""
    try:
        while chunk := os.read(terminal, 65536):
            shown += chunk
    except OSError:
        pass  # the other side is closed: that is how a terminal ends
    assert process.wait(60) == 0
    os.close(terminal)
    assert "demo on concurrent" in shown.decode()
    assert "━" in shown.decode()


def test_interrupted_demo_leaves_nothing(environment: Environment) -> None:
    """Interrupting the demo ends it and leaves no process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rhapsody", "demo", "-n", "200000", "-o", "executor=processes"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    us = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    while len(us.children(recursive=True)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    family = us.children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


def test_survey_counts_a_file(tmp_path: Path) -> None:
    """A survey counts what is in a file."""
    from rhapsody.cli._survey import survey

    path = tmp_path / "sample.py"
    path.write_text(
        textwrap.dedent(
            """
            class Outer:
                def simple(self):
                    return 1

                def branching(self, items):
                    for item in items:
                        if item and item > 1 or item is None:
                            return [other for other in items if other]
                    return None
            """
        )
    )
    found = survey(str(path))
    assert (found.lines, found.functions, found.classes, found.depth) == (10, 2, 1, 4)
    # one, a loop, a condition, `and`, `or`, a comprehension and its condition
    assert (found.most_complex, found.complexity) == ("Outer.branching", 7)
    assert found.size == path.stat().st_size


def test_survey_takes_deep_nesting(tmp_path: Path) -> None:
    """A survey of deeply nested source does not run out of stack."""
    from rhapsody.cli._survey import survey

    path = tmp_path / "deep.py"
    path.write_text(
        "x = " + "+".join(["1"] * 900) + "\n" + "".join(f"{' ' * n}if x:\n" for n in range(80)) + " " * 80 + "pass\n"
    )
    assert survey(str(path)).depth == 80
