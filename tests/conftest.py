"""What all tests share: engines that CI must have, and a look for what a test leaves behind."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

# A shell's background job ignores SIGINT, and what it starts inherits that: the tests of Ctrl-C would test nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)

ENGINES = {"concurrent": "rhapsody", "dask": "distributed", "dragon": "dragon", "radical": "radical.pilot"}


def _missing(engine: str) -> bool:
    try:
        return importlib.util.find_spec(ENGINES[engine]) is None
    except ModuleNotFoundError:  # the parent package is not there either
        return True


@pytest.fixture(autouse=True)
def _engine(request: pytest.FixtureRequest) -> None:
    """Skip a test whose engine is not installed; fail it where that engine is required."""
    for marker in request.node.iter_markers("engine"):
        engine = marker.args[0]
        if _missing(engine):
            if engine in os.environ.get("RHAPSODY_REQUIRE_BACKENDS", "").split(","):
                pytest.fail(f"{engine} is required here, and not installed")
            pytest.skip(f"{engine} is not installed")


@pytest.fixture
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory of the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def leaves_nothing() -> Iterator[None]:
    """Fail if threads, child processes or file descriptors are left when the test is over."""
    me = psutil.Process()
    before = {thread.ident for thread in threading.enumerate()}, {child.pid for child in me.children(recursive=True)}
    descriptors = me.num_fds()
    yield
    deadline = time.monotonic() + 5
    while True:
        threads = [thread.name for thread in threading.enumerate() if thread.ident not in before[0]]
        children = [child for child in me.children(recursive=True) if child.pid not in before[1]]
        opened = me.num_fds() - descriptors
        if not threads and not children and opened <= 0:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: threads {threads}, processes {children}, {opened} file descriptors")
        time.sleep(0.02)
