"""The guard: what a program started ends with it, and a guard that is in trouble is in nobody's way."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest
from rhapsody.worker import guard_process
from rhapsody.worker.guard_process import Guard, death_of, kill_group

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture
def guard() -> Iterator[Guard]:
    guard = Guard()
    yield guard
    guard.close()


def sleeper(guard: Guard) -> subprocess.Popen[bytes]:
    """A process that was started as a backend does."""
    return subprocess.Popen(["sleep", "600"], env=guard.environment(), start_new_session=True)


def end(*processes: subprocess.Popen[bytes]) -> None:
    for process in processes:
        kill_group(process.pid, signal.SIGKILL)
        process.wait()


def test_death_descriptor() -> None:
    """The descriptor for the end of a process is readable once it has ended, and not before."""
    process = subprocess.Popen(["sleep", "600"])
    death = death_of(process.pid)
    assert death is not None
    assert not select.select([death], [], [], 0)[0]
    process.kill()
    assert select.select([death], [], [], 30)[0] == [death]
    process.wait()
    os.close(death)
    assert death_of(process.pid) is None


def test_unused_guard_starts_nothing(guard: Guard) -> None:
    """Closing a guard that was never needed starts no process."""
    before = psutil.Process().children()  # tests before this one may have left a helper of the standard library
    guard.close()
    guard.close()
    assert psutil.Process().children() == before


def test_close_ends_named_groups(guard: Guard) -> None:
    """Closing ends the groups still named, and spares those taken back."""
    named = sleeper(guard)
    spared = subprocess.Popen(["sleep", "600"], start_new_session=True)
    for process in (named, spared):
        guard.watch(process.pid)
    guard.unwatch(spared.pid)
    guard.close()
    assert named.wait(10) == -signal.SIGTERM
    assert spared.poll() is None
    end(spared)


def test_close_ends_marked_processes(guard: Guard) -> None:
    """Closing ends processes that carry the mark though they were never named."""
    process = sleeper(guard)
    guard.close()
    assert process.wait(10) == -signal.SIGTERM


def test_close_ignores_forked_holders(guard: Guard) -> None:
    """Closing does not wait for a forked process that holds the pipe open."""
    guard.environment()
    child = os.fork()
    if not child:
        time.sleep(600)
    began = time.monotonic()
    guard.close()
    assert time.monotonic() - began < 5
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_killed_guard_is_replaced(guard: Guard) -> None:
    """A guard that is killed is replaced, and the new one knows every group."""
    first, second = sleeper(guard), sleeper(guard)
    guard.watch(first.pid)
    assert guard._process is not None
    guard._process.kill()
    guard._process.wait()
    guard.watch(second.pid)
    guard.close()
    assert (first.wait(10), second.wait(10)) == (-signal.SIGTERM, -signal.SIGTERM)


def test_fork_gets_its_own_guard(guard: Guard) -> None:
    """A forked process gets its own guard and leaves the other alone."""
    ours = sleeper(guard)
    guard.watch(ours.pid)
    child = os.fork()
    if not child:
        theirs = sleeper(guard)
        guard.watch(theirs.pid)
        guard.unwatch(ours.pid)
        guard.close()
        os._exit(0 if theirs.wait() == -signal.SIGTERM else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert ours.poll() is None
    end(ours)
    guard.unwatch(ours.pid)


def test_nested_guard_survives(guard: Guard) -> None:
    """A guard survives the guard of the script that started its script."""
    inner = (
        "import os, subprocess, sys, time; from rhapsody.worker.guard_process import Guard; guard = Guard();"
        "p = subprocess.Popen(['sleep', '600'], env=guard.environment(), start_new_session=True);"
        "guard.watch(p.pid); print(p.pid, flush=True); time.sleep(600)"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", inner], env=guard.environment(), stdout=subprocess.PIPE, start_new_session=True
    )
    assert program.stdout is not None
    sleeping = psutil.Process(int(program.stdout.readline()))
    guard.close()  # ends the inner program, which carries the mark, by SIGTERM: its own guard sees to the rest
    assert program.wait(10) == -signal.SIGTERM
    program.stdout.close()
    deadline = time.monotonic() + 10
    while sleeping.is_running() and sleeping.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the inner program's process lives on"
        time.sleep(0.02)


def test_subreaper_ends_daemons() -> None:
    """A process that detached itself and forgot its environment ends with the command that left it."""
    daemon = "import os, time; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0);"
    daemon += "print(os.getpid(), flush=True); time.sleep(600)"
    program = (
        "import os, sys; from rhapsody.worker import Subreaper; reader, writer = os.pipe();"
        "Subreaper().run(sys.argv[2:], owner=int(sys.argv[1]), lifeline=reader, grace=1.0)"
    )
    command = [sys.executable, "-c", program, str(os.getpid()), "env", "-i", sys.executable, "-c", daemon]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=True)
    assert not psutil.pid_exists(int(done.stdout))


def test_subreaper_ends_what_a_job_left() -> None:
    """What a job leaves ends with its last process that is no orphan; daemons and other jobs go on."""
    left = "(setsid sleep 600 >/dev/null & echo $!)"
    command = (
        f"{left}; JOB=1 sh -c '{left}; sleep 0.5'; JOB=2 sh -c '{left}; read line'; "
        "sleep 0.6"  # longer than from one check to the next
    )
    program = (
        "import os, sys; from rhapsody.worker import Subreaper; reader, writer = os.pipe();"
        "Subreaper().run(sys.argv[2:], owner=int(sys.argv[1]), lifeline=reader, grace=1.0, job='JOB')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(os.getpid()), "sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        daemon, first, second = (psutil.Process(int(keeper.stdout.readline())) for _ in range(3))
        psutil.wait_procs([first], timeout=20)
        assert (daemon.is_running(), first.is_running(), second.is_running()) == (True, False, True)
        keeper.stdin.close()
        psutil.wait_procs([second], timeout=20)
        assert not second.is_running()
        keeper.stdout.close()


def test_psutil_finds_marked_processes_as_proc_does(guard: Guard) -> None:
    """Where there is no /proc, psutil finds the processes that carry the guard's mark."""
    marked, other = sleeper(guard), subprocess.Popen(["sleep", "600"], start_new_session=True)
    mark = b"RHAPSODY_GUARD=" + guard.environment()[b"RHAPSODY_GUARD"]
    while not (found := guard_process._marked(mark)):  # until it is the program
        time.sleep(0.01)
    assert guard_process._marked_by_psutil(mark) == found == {marked.pid}
    end(marked, other)
