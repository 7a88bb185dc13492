"""What the tests of the promise share: scripts in processes of their own, and a search for what they leave."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest

HEAD = """
import asyncio, os, signal, sys, threading, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from rhapsody.api import *
from rhapsody.backends import ConcurrentExecutionBackend

def say(*words):
    print(*words, flush=True)

def everything():
    '''A session on threads and on processes, and tasks of every kind that would take ten minutes, more than slots.'''
    kinds = ("threads", "processes")
    backends = [ConcurrentExecutionBackend(name=kind, executor=kind, max_workers=4) for kind in kinds]
    shell = "{0}sleep 600 & {0}sleep 600; sleep 600"
    tasks = [
        ComputeTask(function=time.sleep, args=(600,), backend="threads"),
        ComputeTask(executable=shell.format(""), shell=True, backend="threads"),
        ComputeTask(executable=shell.format("trap '' TERM; "), shell=True, backend="threads"),
        ComputeTask(executable=shell.format("setsid "), shell=True, backend="threads"),
        *(ComputeTask(function=time.sleep, args=(600,), backend="processes") for _ in range(3)),
        ComputeTask(executable=shell.format(""), shell=True, backend="processes"),
        *(ComputeTask(function=time.sleep, args=(600,), backend="threads") for _ in range(8)),
        *(ComputeTask(function=time.sleep, args=(600,), backend="processes") for _ in range(8)),
    ]
    return Session(backends=backends), tasks

async def running(tasks):
    while sum(task.state == "RUNNING" for task in tasks) < 8:
        await asyncio.sleep(0.01)
"""
NOISE = ("Traceback", "never retrieved", "was destroyed", "loop is closed", "Exception ignored", "Error", "Warning")


class Script:
    """A program that runs, with a mark in its environment that all of its descendants inherit."""

    def __init__(self, folder: Path, body: str, *arguments: str) -> None:
        self.mark = uuid.uuid4().hex
        self.folder = folder
        self.cwd, self.tmp = folder / "cwd", folder / "tmp"
        for path in (self.cwd, self.tmp):
            path.mkdir()
        source = folder / "script.py"
        source.write_text(HEAD + textwrap.dedent(body))
        with (folder / "stderr").open("wb") as stderr:
            self.process = self._start(source, arguments, stderr)

    def _start(self, source: Path, arguments: tuple[str, ...], stderr: IO[bytes]) -> subprocess.Popen[bytes]:
        # Not measured: a process that is killed while coverage saves what it saw complains of that.
        out = ("RHAPSODY_", "COVERAGE_PROCESS")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(out)}
        return subprocess.Popen(
            [sys.executable, source, *arguments],
            cwd=self.cwd,
            env={**environment, "PROMISE_MARK": self.mark, "TMPDIR": str(self.tmp)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # a group of its own: Ctrl-C of a terminal goes to a whole group
        )

    def line(self) -> str:
        """Wait for the next line that it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode().strip()
        assert line, f"it ended without a word: {self.stderr}"
        return line

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.killpg(self.process.pid, 2)

    def wait(self, seconds: float = 30) -> int:
        """Wait for its end. Returns the exit code, negative for a signal."""
        return self.process.wait(seconds)

    @property
    def stdout(self) -> str:
        """What it has printed that was not read as a line."""
        assert self.process.stdout is not None
        return self.process.stdout.read().decode()

    @property
    def stderr(self) -> str:
        """What it has written to the terminal in complaint."""
        return (self.folder / "stderr").read_text()

    def descendants(self) -> list[psutil.Process]:
        """All processes alive that carry its mark, wherever they hang in the tree; without itself."""
        found = []
        for process in psutil.process_iter():
            try:
                marked = process.environ().get("PROMISE_MARK") == self.mark
                if marked and process.pid != self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
                continue
        return found

    def leaves_nothing(self, *, files: bool = False) -> None:
        """Fail if a process of it is alive within some seconds of its end, or a file that it made is there."""
        deadline = time.monotonic() + 10
        while left := self.descendants():
            if time.monotonic() > deadline:
                pytest.fail(f"left running: {[' '.join(process.cmdline()) for process in left]}")
            time.sleep(0.02)
        assert list(self.tmp.iterdir()) == []
        if not files:
            assert list(self.cwd.iterdir()) == []

    def quiet(self, *expected: str) -> None:
        """Fail if it wrote to the terminal; or, where complaints are expected, any other complaint."""
        complaints = self.stderr
        if not expected:
            assert complaints == ""
            return
        assert [text for text in expected if text not in complaints] == [], complaints
        for text in expected:
            complaints = complaints.replace(text, "")
        assert [noise for noise in NOISE if noise in complaints] == [], self.stderr

    def end(self) -> None:
        """Clean up after a test that failed."""
        for process in self.descendants():
            process.kill()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Scripts:
    """Starts scripts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Script] = []

    def __call__(self, body: str, *arguments: str) -> Script:
        """Start one: what is shared by all, and this body."""
        folder = self.folder / f"script{len(self.started)}"
        folder.mkdir()
        self.started.append(Script(folder, body, *arguments))
        return self.started[-1]


@pytest.fixture
def start_script(tmp_path: Path) -> Iterator[Scripts]:
    """A function that starts a script, which is ended with the test."""
    scripts = Scripts(tmp_path)
    yield scripts
    for script in scripts.started:
        script.end()
