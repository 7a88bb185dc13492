"""The part of the suite about a program that is killed: nothing of its backend stays."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import cloudpickle
import psutil
import pytest

from rhapsody.testing import tasks
from rhapsody.testing._base import SuitePart, conforms
from rhapsody.testing.assertions import check
from rhapsody.testing.rig import Rig
from rhapsody.testing.watch import MARK, commands, marked

__tracebackhide__ = True  # frames of the suite

_STAYS: Final = 600.0  # seconds that the task of the program would take


class KilledTests(SuitePart):
    """What holds when no code of the backend runs any more in the program that used it."""

    @conforms("leaves nothing behind", restarts=True)
    async def test_killed_program_leaves_nothing(self, rig: Rig) -> None:
        """A program that gets SIGKILL leaves no process, also while a child that it forked lives on."""
        folder = rig.new_folder()
        try:
            (folder / "program").write_bytes(_pickled(rig.new_backend_function, _endless(rig, folder)))
        except Exception as error:
            pytest.skip(f"the fixture new_backend gave what no other program can take: {error}")
        mark = uuid.uuid4().hex
        with (folder / "output").open("wb") as output:
            program = subprocess.Popen(  # noqa: ASYNC220  # a moment
                [sys.executable, "-W", "ignore", "-m", "rhapsody.testing.program", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**psutil.Process().environ(), MARK: mark},  # without what an engine has set here since
                cwd=folder,
                start_new_session=True,
            )
        children: list[int] = []
        started: list[psutil.Process] = []
        try:
            await rig.until(
                lambda: (folder / "child").exists() or program.poll() is not None,
                lambda: f"a program that runs one task does not get so far:\n{_said(folder)}",
            )
            check(program.poll() is None, f"a program that runs one task ended:\n{_said(folder)}")
            children.append(int((folder / "child").read_text()))
            started = psutil.Process(program.pid).children(recursive=True)
            program.kill()
            program.wait()

            def left() -> dict[int, str]:  # an engine may have written over the mark in the environment of its own
                found = commands(started) | marked(mark)
                return {pid: text for pid, text in found.items() if pid not in children}

            await rig.until(
                lambda: not left(),
                lambda: (
                    f"a program was killed while a child that it had forked lives on, and these processes stay: "
                    f"{'; '.join(text[:160] for text in left().values())}; what a backend starts must watch the "
                    f"program's process: a pipe from it stays open in the child. context.guard ends what it watches"
                ),
            )
        finally:
            program.kill()
            program.wait()
            hidden = {*children, *commands(started)}  # an engine may have written over the mark
            for pid in hidden | (await asyncio.to_thread(marked, mark)).keys():
                _kill(pid)


def _endless(rig: Rig, folder: Path) -> list[dict[str, Any]]:
    """Return tasks that do not end, one of each kind; the program runs as many of them as there are slots."""
    endless: list[dict[str, Any]] = []
    if rig.capabilities.functions:
        endless.append({"function": tasks.sign, "args": (str(folder), "began.0", _STAYS)})
    if rig.capabilities.executables:
        script = f"echo > '{folder}/began.{len(endless)}'; exec sleep {_STAYS:g}"
        endless.append({"executable": "/bin/sh", "arguments": ["-c", script]})
    return endless


def _pickled(new_backend: Callable[[], Any], fields: list[dict[str, Any]]) -> bytes:
    """Pickle for a program that cannot import the module of the author's tests."""
    path = [str(Path(entry).absolute()) for entry in sys.path]  # the program runs in another folder
    owner = new_backend.__module__.rpartition(".")[0] or new_backend.__module__  # the tests' package, if they have one
    module = sys.modules.get(owner)
    if module is None:
        return pickle.dumps((path, cloudpickle.dumps(new_backend), fields))
    cloudpickle.register_pickle_by_value(module)
    try:
        return pickle.dumps((path, cloudpickle.dumps(new_backend), fields))
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _said(folder: Path) -> str:
    return (folder / "output").read_text(errors="replace")[-2000:]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # it ended by itself
        pass
