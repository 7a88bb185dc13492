"""However a session ends, nothing of its runtime is left, and nothing of the runtime is seen."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from .conftest import Script

pytestmark = [pytest.mark.engine("dragon"), pytest.mark.timeout(180)]

# A function that sleeps, and a program that starts another in a session of its own.
SCRIPT = """
import asyncio, time
from rhapsody.api import ComputeTask, Session
from rhapsody.backends import get_backend

async def main():
    async with Session([get_backend("dragon_v2", resources={"slots": 2})]) as session:
        print("UP", flush=True)
        tasks = [
            ComputeTask(function=time.sleep, args=(300,)),
            ComputeTask(executable="/bin/sh", arguments=["-c", "setsid sleep 300 & sleep 300"]),
        ]
        await session.submit_tasks(tasks)
        while any(task.state != "RUNNING" for task in tasks):
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        print("RUNNING", flush=True)
        ENDING

asyncio.run(main())
"""


def run(script: Callable[[str], Script], ending: str) -> Script:
    one = script(SCRIPT.replace("ENDING", ending))
    assert one.first == "UP", one.end()
    assert one.next_line() == "RUNNING"
    return one


def test_close_leaves_and_prints_nothing(script: Callable[[str], Script]) -> None:
    """A closed session leaves no process or file, and nothing of the runtime is printed."""
    one = run(script, "await session.close(wait=False)")
    assert one.end() == ("", "")
    assert one.process.returncode == 0
    one.must_leave_nothing()


@pytest.mark.nightly
def test_an_exception_leaves_nothing(script: Callable[[str], Script]) -> None:
    """A script that fails prints its own traceback alone, and leaves nothing."""
    one = run(script, "raise ValueError('mine')")
    out, err = one.end()
    assert out == ""
    assert err.startswith("Traceback")
    assert err.endswith("ValueError: mine\n")
    assert "RHAPSODY_DRAGON" not in err
    one.must_leave_nothing()


@pytest.mark.nightly  # the conformance suite kills a program too
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_nothing(script: Callable[[str], Script], number: signal.Signals) -> None:
    """A script that is interrupted, terminated or killed leaves nothing."""
    one = run(script, "await asyncio.sleep(300)")
    one.process.send_signal(number)
    out, _ = one.end()
    assert out == ""
    assert one.process.returncode != 0
    one.must_leave_nothing()


def test_a_kill_during_start_leaves_nothing(script: Callable[[str], Script]) -> None:
    """A script that is killed while the runtime starts leaves nothing."""
    one = script(
        """
import threading
from rhapsody_dragon import runtime
from rhapsody_dragon.startup_checks import PARTS

def report(what):
    if what == PARTS["services"].waits_for:
        print("UP", flush=True)

runtime.acquire(report)
threading.Event().wait()
"""
    )
    one.process.kill()
    one.end()
    one.must_leave_nothing()
