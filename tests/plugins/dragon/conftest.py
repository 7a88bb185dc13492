"""What the tests of the Dragon backends share: one runtime for a module, and a search for what is left of it."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rhapsody.api import ComputeTask, Session

# Without the engine there is nothing to collect here; where it is required, the imports fail and say so.
IS_INSTALLED = all(importlib.util.find_spec(package) is not None for package in ("rhapsody_dragon", "dragon"))
if not IS_INSTALLED and "dragon" not in os.environ.get("RHAPSODY_REQUIRE_BACKENDS", "").split(","):
    collect_ignore_glob = ["test_*.py"]

#: In the environment of whatever a script of these tests starts, however it detaches itself.
MARK = "RHAPSODY_DRAGON_TESTS"
#: Seconds in which nothing may be left, however a session ended.
CLEAN = 20.0


def outside() -> dict[str, str]:
    """The environment of a program that has nothing to do with the shared runtime."""
    return {key: value for key, value in os.environ.items() if not key.startswith("DRAGON_")}


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that only waits to be collected does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.Error, OSError):
        return False


def marked(mark: str) -> list[psutil.Process]:
    """The processes that descend from the script of this mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.Error, OSError):  # it has ended, or is another user's
            continue
    return found


def shared_memory(processes: list[psutil.Process]) -> set[str]:
    """The files of Dragon in shared memory that these processes have mapped."""
    files = set()
    for process in processes:
        try:
            text = Path("/proc", str(process.pid), "maps").read_text()
        except OSError:  # it has ended
            continue
        files |= {line.split()[5] for line in text.splitlines() if " /dev/shm/D" in line}
    return files


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait until something is true; fail with what was waited for if it does not come."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            pytest.fail(f"{what}: still not so after {seconds:g} seconds")
        time.sleep(0.05)


def run_tasks(backend: Any, folder: Path, *tasks: ComputeTask) -> list[ComputeTask]:
    """Run tasks in a session of their own until each has ended."""

    async def main() -> None:
        async with Session([backend], work_dir=folder) as session:
            await session.submit_tasks(tasks)
            await session.wait_tasks(tasks)

    asyncio.run(main())
    return list(tasks)


class Script:
    """A user's script in a process of its own; it prints UP when its session is open."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder = folder / "cwd"
        self.folder.mkdir()
        self.mark = folder.name
        path = folder / "script.py"
        path.write_text(text)
        self.process = subprocess.Popen(
            [sys.executable, str(path)],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**outside(), MARK: self.mark},
        )
        assert self.process.stdout is not None
        self.seen: set[psutil.Process] = set()
        self.first = self.next_line()
        self.files = shared_memory(list(self.seen))

    def next_line(self) -> str:
        """The next line that the script prints; by then its processes are noted."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if self.process.poll() is None:
            self.seen |= set(psutil.Process(self.process.pid).children(recursive=True))
        return line

    def left(self) -> list[psutil.Process]:
        """The processes of the script that still run: those that were seen, and those that have its mark.

        A mark alone would not do, for Dragon's processes write their names over their environment.
        """
        return [one for one in self.seen if is_alive(one)] + marked(self.mark)

    def end(self, seconds: float = 60.0) -> tuple[str, str]:
        """Wait for the script's own end; what it printed, on standard output and on standard error."""
        return self.process.communicate(timeout=seconds)

    def must_leave_nothing(self) -> None:
        """Fail if processes, files of shared memory or files in its folder are left after a while."""
        wait_for(lambda: not self.left(), CLEAN, "no process of the script is left")
        assert self.files, "the runtime was seen while it was up"
        assert not [file for file in self.files if Path(file).exists()]
        assert not [path for path in self.folder.iterdir() if not path.name.startswith("rhapsody.")]


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[[str], Script]]:
    """Runs a script; ends whatever it leaves, so that a failing test harms no other."""
    scripts: list[Script] = []

    def run(text: str) -> Script:
        scripts.append(Script(tmp_path, text))
        return scripts[-1]

    yield run
    for one in scripts:
        for process in one.left():
            process.kill()
        one.process.kill()
        one.process.wait()
        for stream in (one.process.stdout, one.process.stderr):
            if stream is not None:
                stream.close()


class Shared:
    """The runtime that the tests share which do not end it, and sessions on it that stay open while they run."""

    def __init__(self, folder: Path) -> None:
        self.held: Any = None
        self._folder = folder
        self._runner: asyncio.Runner | None = None
        self._sessions: dict[Any, Session] = {}

    def take(self) -> Any:
        from rhapsody_dragon import runtime

        if self.held is None:
            self.held = runtime.acquire(lambda what: None, threading.Event(), 100.0)
        return self.held

    def run(self, make: Callable[[], Any], *tasks: ComputeTask) -> list[ComputeTask]:
        """Run tasks until each has ended, in the session of a backend, which is made where there is none yet."""

        async def main() -> None:
            if make not in self._sessions:
                self._sessions[make] = Session([make()], work_dir=self._folder)
            await self._sessions[make].submit_tasks(tasks)
            await self._sessions[make].wait_tasks(tasks)

        self.take()
        self._runner = self._runner or asyncio.Runner()
        self._runner.run(main())
        return list(tasks)

    def give_back(self) -> None:
        from rhapsody_dragon import runtime

        if self._runner is not None:
            for session in self._sessions.values():
                self._runner.run(session.close())
            self._runner.close()
        self._runner, self._sessions = None, {}
        held, self.held = self.held, None
        if held is not None:
            runtime.release(held)


@pytest.fixture(scope="package")  # and no longer: it changes the environment, which other tests pass on
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """What the two fixtures below use."""
    one = Shared(tmp_path_factory.mktemp("sessions"))
    yield one
    one.give_back()


@pytest.fixture(scope="module")
def dragon(shared: Shared) -> Any:
    """The shared runtime."""
    return shared.take()


@pytest.fixture(scope="module")
def no_dragon(shared: Shared) -> None:
    """No runtime: the tests of this module start their own."""
    shared.give_back()
