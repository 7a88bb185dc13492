"""The process that lets nothing of RADICAL-Pilot survive, with a client that only behaves like it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from rhapsody.worker import subreaper

from .conftest import wait_until

KEEPER = [sys.executable, "-m", "rhapsody_radical.keeper"]
# Starts a daemon, as RADICAL-Pilot does: orphaned, in a session of its own, and deaf to SIGTERM; waits until it runs.
CLIENT = """
import os, signal, sys, time
begun, begin = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(os.getpid(), flush=True)
        os.write(begin, b"!")
        time.sleep(600)
    os._exit(0)
os.wait()
os.read(begun, 1)
%s
"""
LIVES_ON = "time.sleep(600)"

Start = Callable[..., tuple[subprocess.Popen[str], int, psutil.Process]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a keeper over a client. Returns it, the lifeline, and the client's daemon."""
    opened: list[int] = []
    keepers: list[subprocess.Popen[str]] = []

    def run(then: str, sid: str = "no.such.session") -> tuple[subprocess.Popen[str], int, psutil.Process]:
        reader, lifeline = os.pipe()
        opened.append(lifeline)
        command = [*KEEPER, str(os.getpid()), str(reader), sid, "--", sys.executable, "-c", CLIENT % then]
        keeper = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, pass_fds=(reader,), start_new_session=True
        )
        os.close(reader)
        keepers.append(keeper)
        assert keeper.stdout is not None
        return keeper, lifeline, psutil.Process(int(keeper.stdout.readline()))

    yield run
    for keeper in keepers:
        for process in psutil.Process(keeper.pid).children(recursive=True) if keeper.poll() is None else []:
            process.kill()
        keeper.kill()
        keeper.wait()
        assert keeper.stdout is not None
        keeper.stdout.close()
    for fd in opened:
        os.close(fd)


def test_daemon_ends_with_its_client(start: Start) -> None:
    """A daemon does not outlive the client that left it."""
    keeper, _, daemon = start("")
    assert keeper.wait(30) == 0
    assert not daemon.is_running()


def test_daemon_ends_with_killed_client(start: Start) -> None:
    """A daemon does not outlive a client that was killed."""
    keeper, _, daemon = start("os.kill(os.getpid(), signal.SIGKILL)")
    keeper.wait(30)
    assert not daemon.is_running()


def test_parent_ends_all_at_once(start: Start) -> None:
    """Everything ends at once when the parent says so."""
    keeper, lifeline, daemon = start("signal.signal(signal.SIGTERM, signal.SIG_IGN); " + LIVES_ON)
    os.write(lifeline, b"!")
    keeper.wait(30)
    assert not daemon.is_running()


def test_sigterm_asks_client_to_close(start: Start) -> None:
    """The client is asked to close when the keeper gets SIGTERM."""
    keeper, _, daemon = start(
        "signal.signal(signal.SIGTERM, lambda *_: (print('closed', flush=True), sys.exit()));" + LIVES_ON
    )
    keeper.terminate()
    keeper.wait(30)
    assert keeper.stdout is not None
    assert keeper.stdout.read() == "closed\n"
    assert not daemon.is_running()


def test_nothing_outlives_killed_parent() -> None:
    """Nothing outlives a parent that was killed."""
    parent = (
        "import os, subprocess, sys, time\n"
        "r, w = os.pipe()\n"
        f"subprocess.Popen([*{KEEPER!r}, str(os.getpid()), str(r), 'no.such.session', '--',"
        f" sys.executable, '-c', {CLIENT % LIVES_ON!r}], pass_fds=(r,), start_new_session=True)\n"
        "os.close(r)\n"
        "if os.fork() == 0:\n"  # holds the lifeline open, as a forked worker of the user's would
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(600)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(process.stdout.readline()), int(process.stdout.readline())]
    started = [psutil.Process(pid) for pid in pids]
    children = psutil.Process(process.pid).children(recursive=True)
    holder = next(child for child in children if child.pid in pids and child.ppid() == process.pid)
    try:
        process.kill()
        process.wait()
        wait_until(lambda: not any(p.is_running() for p in started if p != holder), "the end of the daemon", 60)
    finally:
        holder.kill()
        process.stdout.close()


def test_temporary_files_are_removed(start: Start) -> None:
    """The session's temporary files are removed, and no others."""
    sid = f"rp.test.{uuid.uuid4().hex}"
    mine, others = (Path(tempfile.gettempdir()) / f"rp.agent_cfg.{uuid.uuid4().hex}" for _ in range(2))
    folder = Path(tempfile.gettempdir()) / sid
    try:
        mine.write_text(f'{{"sid": "{sid}"}}')
        others.write_text('{"sid": "rp.session.of.others"}')
        folder.mkdir()
        keeper, _, _ = start("", sid)
        keeper.wait(30)
        assert (mine.exists(), folder.exists(), others.exists()) == (False, False, True)
    finally:
        others.unlink()


def test_psutil_finds_descendants_as_proc_does() -> None:
    """Where there is no /proc, psutil finds the same descendants, at any depth."""
    with subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600 & echo up; wait"], stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        shell.stdout.readline()
        found = subreaper.descendants(os.getpid())
        assert sorted(subreaper._descendants_by_psutil(os.getpid())) == sorted(found)
        below = subreaper.descendants(shell.pid)
        assert len(below) == 2
        for pid in [shell.pid, *below]:
            os.kill(pid, signal.SIGKILL)
