"""What the tests of the pilot share: scripts run as a user would, and a search for what they leave behind."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

# Without the engine there is nothing to collect here; where it is required, the imports fail and say so.
IS_INSTALLED = importlib.util.find_spec("rhapsody_radical") is not None
if not IS_INSTALLED and "radical" not in os.environ.get("RHAPSODY_REQUIRE_BACKENDS", "").split(","):
    collect_ignore_glob = ["test_*.py"]

HANG = 300.0  # seconds; a pilot takes 20 on a quiet machine


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes that were started for a pilot in a folder, whatever their parent is now.

    RADICAL-Pilot's daemons overwrite their command lines and environments with a name, but they stay in their folders.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            places = [process.cwd(), process.environ().get("RADICAL_BASE", ""), *process.cmdline()]
            if any(f"{folder}/" in place for place in places):
                found.append(process)
        except (psutil.Error, OSError):  # it ended (psutil lets ENOENT of a vanishing folder through), or is not ours
            continue
    return found


def agents_of(folder: Path) -> list[psutil.Process]:
    """Return the agents among them."""
    found = []
    for process in processes_of(folder):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if process.name() == "rp.agent.0":
                found.append(process)
    return found


def wait_until(condition: Callable[[], object], what: str, seconds: float = HANG) -> None:
    """Wait for something that must become true; `seconds` is only for a hang."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {seconds:g} seconds: {what}"
        time.sleep(0.1)


class Script:
    """A user's script in a process of its own, in a current and a home folder of its own."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        (folder / "script.py").write_text(textwrap.dedent(text))
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(self.home), "LC_ALL": "C.UTF-8"}
        with (folder / "stderr.txt").open("w") as stderr:
            self.process = subprocess.Popen(  # no activated environment
                [sys.executable, "-u", "script.py"],
                cwd=folder,
                env=environment,
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        self.stdout = self.process.stdout

    def expect(self, line: str) -> None:
        """Read what it prints until this line comes."""
        seen = []
        for text in self.stdout:
            if text.strip() == line:
                return
            seen.append(text)
        pytest.fail(f"never printed {line!r}, but {seen} and {self.stderr}")

    def finish(self) -> str:
        """Wait for its end. Returns what else it printed."""
        text = self.stdout.read()
        self.process.wait(HANG)
        return text

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr.txt").read_text()

    def leaves_nothing(self) -> None:
        """Fail if a process of the pilot lives on, or a folder of RADICAL-Pilot lies about."""
        wait_until(lambda: not processes_of(self.folder), f"the end of {processes_of(self.folder)}", 60)
        assert [path.name for path in self.folder.glob("r[pa]*.*")] == []
        assert [path.name for path in self.home.glob("r*")] + [path.name for path in self.home.glob(".r*")] == []

    def end(self) -> None:
        """End it, should the test have failed; its keeper ends what it started, and has some seconds for it."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        deadline = time.monotonic() + 30
        while (left := processes_of(self.folder)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.stdout.close()


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[[str], Script]]:
    """Start a user's script."""
    started: list[Script] = []

    def start(text: str) -> Script:
        started.append(Script(tmp_path / f"script{len(started)}", text))
        return started[-1]

    yield start
    for one in started:
        one.end()
