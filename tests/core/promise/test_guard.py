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
from rhapsody._guard import Guard, death_of, kill_group

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


def test_a_descriptor_of_a_death_can_be_read_once_the_process_has_ended_and_not_before() -> None:
    process = subprocess.Popen(["sleep", "600"])
    death = death_of(process.pid)
    assert death is not None
    assert not select.select([death], [], [], 0)[0]
    process.kill()
    assert select.select([death], [], [], 30)[0] == [death]
    process.wait()
    os.close(death)
    assert death_of(process.pid) is None


def test_closing_a_guard_that_was_never_needed_starts_nothing(guard: Guard) -> None:
    before = psutil.Process().children()  # tests before this one may have left a helper of the standard library
    guard.close()
    guard.close()
    assert psutil.Process().children() == before


def test_closing_ends_what_is_still_named_and_spares_what_was_taken_back(guard: Guard) -> None:
    named = sleeper(guard)
    spared = subprocess.Popen(["sleep", "600"], start_new_session=True)
    for process in (named, spared):
        guard.watch(process.pid)
    guard.unwatch(spared.pid)
    guard.close()
    assert named.wait(10) == -signal.SIGTERM
    assert spared.poll() is None
    end(spared)


def test_closing_ends_what_carries_the_mark_and_was_never_named(guard: Guard) -> None:
    process = sleeper(guard)
    guard.close()
    assert process.wait(10) == -signal.SIGTERM


def test_closing_does_not_wait_for_a_process_that_was_forked_and_holds_the_pipe(guard: Guard) -> None:
    guard.environment()
    child = os.fork()
    if not child:
        time.sleep(600)
    began = time.monotonic()
    guard.close()
    assert time.monotonic() - began < 5
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_guard_that_somebody_kills_is_replaced_and_knows_all(guard: Guard) -> None:
    first, second = sleeper(guard), sleeper(guard)
    guard.watch(first.pid)
    assert guard._process is not None
    guard._process.kill()
    guard._process.wait()
    guard.watch(second.pid)
    guard.close()
    assert (first.wait(10), second.wait(10)) == (-signal.SIGTERM, -signal.SIGTERM)


def test_a_forked_process_gets_a_guard_of_its_own_and_leaves_the_other_alone(guard: Guard) -> None:
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


def test_a_guard_outlives_the_guard_of_the_program_that_its_program_was_started_by(guard: Guard) -> None:
    inner = (
        "import os, subprocess, sys, time; from rhapsody._guard import Guard; guard = Guard();"
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
