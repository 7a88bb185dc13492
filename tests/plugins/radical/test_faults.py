"""What goes wrong with a pilot, and with the program that uses it; each in a process of its own, as a user's is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from .conftest import HANG, Script, agents_of, processes_of, wait_until

pytestmark = [pytest.mark.engine("radical"), pytest.mark.slow, pytest.mark.timeout(2 * HANG)]

Start = Callable[[str], Script]

BEGINNING = """
    import asyncio, os, sys, time
    from rhapsody.api import ComputeTask, Session
    from rhapsody.backends import RadicalExecutionBackend

    def tell(tasks):
        for task in tasks:
            print(task.state, type(task.exception).__name__, str(task.exception).splitlines()[0])

    async def hold(session):
        tasks = [ComputeTask(executable="sleep", arguments=[1000]) for _ in range(4)]
        tasks += [ComputeTask(function=time.sleep, args=(1000,)) for _ in range(4)]
        await session.submit_tasks(tasks)
        while not any(task.state == "RUNNING" for task in tasks):
            await asyncio.sleep(0.1)
        print("running")
        return tasks
"""

WAITS = (
    BEGINNING
    + """
    async def main():
        async with Session(backends=[RadicalExecutionBackend(resources={"cores": 2})]) as session:
            tasks = await hold(session)
            await session.wait_tasks(tasks)
            tell(tasks)

    asyncio.run(main())
    print("ended well")
"""
)

DESCRIBES = (
    BEGINNING
    + """
    import contextlib, json
    from pathlib import Path

    @contextlib.contextmanager
    def described(machine):
        folder = Path.home() / ".radical" / "pilot" / "configs"
        folder.mkdir(parents=True)
        (folder / "resource_local.json").write_text(json.dumps({"localhost": machine}))
        yield
        (folder / "resource_local.json").unlink()
        for path in (folder, *list(folder.parents)[:2]):
            path.rmdir()
"""
)


def client_of(folder: Path) -> psutil.Process:
    """Return the process that holds RADICAL-Pilot's client: the child of the keeper."""
    commands = {process: command_of(process) for process in processes_of(folder)}
    [keeper] = [process for process, command in commands.items() if "rhapsody_radical.keeper" in command]
    [client] = [child for child in keeper.children() if "rhapsody_radical.bridge" in command_of(child)]
    return client


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.Error, OSError):  # one of the many short-lived helpers of RADICAL-Pilot
        return ""


@pytest.fixture(scope="module")
def doomed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Script]]:
    """Scripts that will not end well, all started at the same time."""
    signals = ("SIGINT", "SIGTERM", "SIGKILL") if request.config.getoption("--nightly") else ()
    texts = dict.fromkeys(signals, WAITS)
    texts["exception"] = WAITS.replace("await session.wait_tasks(tasks)", 'raise LookupError("mine")')
    scripts = {name: Script(tmp_path_factory.mktemp(name), text) for name, text in texts.items()}
    yield scripts
    for script in scripts.values():
        script.end()


@pytest.mark.nightly
def test_dead_agent_spares_other_session(script: Start) -> None:
    """Of two sessions at once a dead agent takes only its own."""
    both = script(
        BEGINNING
        + """
    async def main():
        backends = [RadicalExecutionBackend(resources={"cores": 1}) for _ in range(2)]
        sessions = [Session(backends=[backend]) for backend in backends]
        await asyncio.gather(*[session.start() for session in sessions])
        one, other = sessions
        tasks = await hold(one)
        await one.wait_tasks(tasks)
        tell(tasks)
        await one.close()
        more = [ComputeTask(executable="echo", arguments=["alive"]), ComputeTask(function=abs, args=(-7,))]
        await other.submit_tasks(more)
        await other.wait_tasks(more)
        print(more[0].stdout.strip(), more[1].return_value)
        await other.close()

    asyncio.run(main())
    print("ended well")
"""
    )
    both.expect("running")
    agents = agents_of(both.folder)
    assert len(agents) == 2
    sandboxes = sorted(both.folder.glob("rhapsody.*"))
    first = next(agent for agent in agents if str(sandboxes[0]) in agent.cwd())
    first.kill()
    said = both.finish().splitlines()
    assert [line.startswith("FAILED PilotLostError backend 'radical': the pilot on") for line in said[:8]] == [True] * 8
    assert said[8:] == ["alive 7", "ended well"]
    assert both.stderr == ""
    both.leaves_nothing()


@pytest.mark.nightly
def test_dead_client_process_is_reported(script: Start) -> None:
    """The loss of the process that holds RADICAL-Pilot is reported."""
    user = script(WAITS)
    user.expect("running")
    client_of(user.folder).kill()
    said = user.finish().splitlines()
    assert all(
        "FAILED PilotLostError" in line and "process that held RADICAL-Pilot ended" in line for line in said[:-1]
    )
    assert said[-1] == "ended well"
    user.leaves_nothing()


@pytest.mark.nightly  # the conformance suite has SIGKILL
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_signal_leaves_nothing(doomed: dict[str, Script], name: str) -> None:
    """Nothing survives a script that a signal ends."""
    user = doomed[name]
    user.expect("running")
    user.process.send_signal(signal.Signals[name])
    user.finish()
    assert user.process.returncode != 0
    user.leaves_nothing()


def test_exception_ends_the_pilot(doomed: dict[str, Script]) -> None:
    """An exception of the user ends the pilot."""
    user = doomed["exception"]
    user.expect("running")
    user.finish()
    assert user.stderr.splitlines()[-1] == "LookupError: mine"
    user.leaves_nothing()


def test_ctrl_c_during_start(script: Start) -> None:
    """Ctrl-C while the pilot starts ends it in good order."""
    user = script(WAITS)
    wait_until(lambda: len(processes_of(user.folder)) > 8, "some processes of RADICAL-Pilot")
    began = time.monotonic()
    os.killpg(user.process.pid, signal.SIGINT)  # as a terminal does, to the whole foreground group
    user.finish()
    assert time.monotonic() - began < 60
    assert "KeyboardInterrupt" in user.stderr.splitlines()[-1]
    user.leaves_nothing()


DEAF = """
import pathlib, sys

if "radical-pilot-agent_0" in " ".join(sys.orig_argv):
    from radical.pilot.utils.component import BaseComponent

    publish, lost = BaseComponent.publish, pathlib.Path(__file__).with_name("lost")

    def lose_one(self, pubsub, msg, topic=None):
        if getattr(msg, "cmd", "") == "prepare_env" and not lost.exists():
            lost.touch()
        else:
            publish(self, pubsub, msg, topic)

    BaseComponent.publish = lose_one
"""


@pytest.mark.nightly
def test_agent_that_lost_a_message_starts(script: Start) -> None:
    """An agent that has lost its message to itself comes up."""
    user = script(
        DESCRIBES
        + f"""
    deaf = Path("deaf").absolute()
    deaf.mkdir()
    (deaf / "sitecustomize.py").write_text({DEAF!r})
    machine = {{"pre_bootstrap_0": [f"export PYTHONPATH={{deaf}}"]}}

    async def main():
        async with Session(backends=[RadicalExecutionBackend(resources={{"cores": 2}})]) as session:
            task = ComputeTask(executable="echo", arguments=["up"])
            await session.submit_tasks([task])
            print((await task).stdout.strip())

    with described(machine):
        asyncio.run(main())
    print("ended well")
"""
    )
    assert user.finish().splitlines() == ["up", "ended well"]
    assert (user.folder / "deaf" / "lost").exists()
    user.leaves_nothing()


def test_failed_pilot_says_why(script: Start) -> None:
    """A pilot that fails says why, and the script goes on."""
    user = script(
        DESCRIBES
        + """
    async def main():
        try:
            async with Session(backends=[RadicalExecutionBackend()]):
                print("started")
        except Exception as error:
            print(type(error).__name__, str(error).replace(chr(10), " "))

    with described({"virtenv_mode": "use", "virtenv": str(Path.cwd() / "no-env")}):
        asyncio.run(main())
    print("ended well")
"""
    )
    said = user.finish().splitlines()
    assert said[0].startswith("BackendStartError backend 'radical'")
    assert f"ERROR: given virtenv does not exist at {user.folder / 'no-env'}" in said[0]
    assert said[1:] == ["ended well"]
    user.leaves_nothing()


@pytest.mark.nightly
def test_expired_pilot_is_lost(script: Start) -> None:
    """When its runtime is over a pilot is lost, and the error says so."""
    last_minute = script(WAITS.replace('{"cores": 2}', '{"cores": 2, "runtime": 1}'))
    last_minute.expect("running")
    said = last_minute.finish().splitlines()
    assert len(said) == 9
    assert all("FAILED PilotLostError" in line and "its runtime was 1 minute" in line for line in said[:8])
    assert said[8] == "ended well"
    last_minute.leaves_nothing()


def test_unusable_folder_is_refused(script: Start) -> None:
    """A folder that RADICAL-Pilot's shell scripts cannot take is refused."""
    user = script(
        BEGINNING
        + """
    async def main():
        async with Session(backends=[RadicalExecutionBackend()], work_dir="with a space"):
            pass

    asyncio.run(main())
"""
    )
    user.finish()
    assert "take no spaces or special characters; choose another folder with Session(work_dir=...)" in user.stderr
    user.leaves_nothing()
