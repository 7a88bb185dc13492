"""`context.guard`: what a backend has started ends with its session, whatever its shutdown leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest
from rhapsody.api import InvalidBackendError, Session
from rhapsody.plugin import hookimpl

from ..puppet import Puppet

pytestmark = pytest.mark.usefixtures("leaves_nothing")
SLEEP = ["sleep", "600"]


class Careless(Puppet):
    """Starts what it is given, and shuts nothing down."""

    def __init__(self, start: Any) -> None:
        super().__init__()
        self.start = start

    @hookimpl
    async def rhapsody_init(self, context: Any) -> None:
        await super().rhapsody_init(context)
        self.process = self.start(context.guard)


def watched_group(guard: Any) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(SLEEP, start_new_session=True)
    guard.watch(process)
    return process


def watched_process(guard: Any) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(SLEEP)
    guard.watch(process.pid)
    return process


def marked(guard: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(SLEEP, env=guard.environment())


def renamed(guard: Any) -> subprocess.Popen[bytes]:
    code = "import setproctitle, time; setproctitle.setproctitle('a title' * 40); print(flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], env=guard.environment(), stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as output:
        output.readline()
    return process


def started_by_a_library(guard: Any) -> subprocess.Popen[bytes]:
    with guard.marking():
        return subprocess.Popen(SLEEP)


def marked_by_the_engine(guard: Any) -> subprocess.Popen[bytes]:
    guard.watch_mark("ENGINE_RUN", "17")
    return subprocess.Popen(SLEEP, env={**os.environ, "ENGINE_RUN": "17"})


@pytest.mark.parametrize(
    "start", [watched_group, watched_process, marked, renamed, started_by_a_library, marked_by_the_engine],
    ids=lambda start: start.__name__,
)  # fmt: skip
async def test_guard_ends_what_shutdown_left(start: Any) -> None:
    """A process that was watched or marked is ended after a shutdown that forgot it."""
    async with Session(backends=[backend := Careless(start)]):
        assert backend.process.poll() is None
    assert backend.process.wait(10) == -signal.SIGTERM
    assert not {"RHAPSODY_GUARD", "SPT_NOENV"} & os.environ.keys()


async def test_unwatched_process_lives_on() -> None:
    """A process that was taken back outlives the session."""

    def start(guard: Any) -> subprocess.Popen[bytes]:
        process = watched_process(guard)
        guard.unwatch(process)
        return process

    async with Session(backends=[backend := Careless(start)]):
        pass
    assert backend.process.poll() is None
    backend.process.kill()
    backend.process.wait()


async def test_guard_ends_processes_with_the_program() -> None:
    """What the guard watches ends when the program is killed."""
    code = """if True:
        import asyncio, os, subprocess, sys
        from pathlib import Path
        from rhapsody.plugin import BackendContext
        async def main():
            context = BackendContext(backend="b", session="s", work_dir=Path("."), loop=asyncio.get_running_loop())
            process = subprocess.Popen(["sleep", "600"])
            context.guard.watch(process)
            print(process.pid, flush=True)
            await asyncio.sleep(600)
        asyncio.run(main())
    """
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert program.stdout is not None
    pid = int(program.stdout.readline())
    death = os.pidfd_open(pid)
    program.kill()
    program.wait()
    program.stdout.close()
    import select

    assert select.select([death], [], [], 20)[0]
    os.close(death)


@pytest.mark.parametrize("process", [None, 0, True, pytest.param(os.getpid(), id="our own"), "1234"])
async def test_guard_watches_processes_only(process: Any) -> None:
    """What is no process of the backend's is refused."""
    async with Session(backends=[backend := Puppet()]):
        with pytest.raises(InvalidBackendError, match=r"guard\.watch takes a process that the backend has started"):
            backend.context.guard.watch(process)


@pytest.mark.parametrize(("name", "value"), [("", "1"), ("A=", "1"), ("A", ""), ("A", "1\n2")])
async def test_guard_refuses_impossible_marks(name: str, value: str) -> None:
    """A variable that would match nothing, or everything, is refused."""
    async with Session(backends=[backend := Puppet()]):
        with pytest.raises(InvalidBackendError, match="no process can be found by the variable"):
            backend.context.guard.watch_mark(name, value)
