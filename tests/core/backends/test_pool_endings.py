"""Workers of the process pool end as Python programs do."""

from __future__ import annotations

import atexit
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend

pytestmark = pytest.mark.usefixtures("leaves_nothing")
_held: list[Any] = []


@pytest.fixture
def leaves_nothing() -> Iterator[None]:
    """See that what was shared is gone."""
    before = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").exists() else set()
    yield
    after = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").exists() else set()
    assert not {path for path in after - before if path.name.startswith("psm_")}


async def run(function: Any, *args: Any) -> Any:
    """Run one task on one worker, and close the session."""
    async with Session(backends=[ConcurrentExecutionBackend(executor="processes", max_workers=1)]) as session:
        task = ComputeTask(function=function, args=args)
        await session.submit_tasks([task])
        return (await task).return_value


def _write_later(path: str) -> None:
    atexit.register(Path(path).write_text, "left")


def _keep_open(path: str) -> None:
    file = Path(path).open("w")  # noqa: SIM115  # to leave it open is the matter
    file.write("not flushed")
    _held.append(file)


def _make_folder() -> str:
    _held.append(tempfile.TemporaryDirectory())
    return str(_held[-1].name)


def _share() -> str:
    _held.append(shared_memory.SharedMemory(create=True, size=100))
    return str(_held[-1].name)


def _never_end() -> None:
    threading.Thread(target=time.sleep, args=(600,)).start()


async def test_handlers_of_atexit_run(tmp_path: Path) -> None:
    """What a task registers is called when the session closes."""
    await run(_write_later, str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "left"


async def test_open_files_are_flushed(tmp_path: Path) -> None:
    """What a task wrote to a file that it left open is there."""
    await run(_keep_open, str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "not flushed"


async def test_temporary_folders_are_removed() -> None:
    """A TemporaryDirectory that a task kept is gone."""
    assert not Path(await run(_make_folder)).exists()


@pytest.mark.skipif(not Path("/dev/shm").exists(), reason="shared memory has no folder here")
async def test_shared_memory_is_removed() -> None:
    """What a task shared, and never unlinked, is gone."""
    assert not Path("/dev/shm", await run(_share)).exists()


async def test_a_thread_without_end_is_ended() -> None:
    """A thread that a task left, and that does not end in the grace, holds no session up."""
    began = time.monotonic()
    await run(_never_end)
    assert time.monotonic() - began < 60
