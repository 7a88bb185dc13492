"""What the tests of the Dragon backends share: one runtime for a module, and a look for what is left of it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.engine("dragon")


def shared_memory() -> set[str]:
    """The files of Dragon in shared memory."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("D")}


def descendants() -> list[psutil.Process]:
    """The processes that this one started, the watchdog and the runtime under it among them."""
    return [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]


def wait_for(condition, seconds: float, what: str) -> None:
    """Wait until something is true; fail with what was waited for if it does not come."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            pytest.fail(f"{what}: still not so after {seconds:g} seconds")
        time.sleep(0.05)


@pytest.fixture(scope="module")
def dragon() -> Iterator[object]:
    """A runtime that the sessions of a module share, so that each of them starts in a second."""
    pytest.importorskip("dragon")
    from rhapsody_dragon import runtime

    held = runtime.acquire(lambda part: None, threading.Event(), 100.0)
    yield held
    runtime.release(held)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A current folder of the module's own, which must be empty at the end."""
    folder, before = tmp_path_factory.mktemp("cwd"), Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)
