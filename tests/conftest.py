"""What all tests share: engines that CI must have, the lanes of a run, and a check of what a test leaves behind."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from .lanes import ByGroup, is_measured, rank

# A shell's background job ignores SIGINT, what nohup starts SIGHUP, and what these start inherits that: the tests of
# Ctrl-C and of a terminal that goes would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

ENGINES = {"concurrent": "rhapsody", "dask": "distributed", "dragon": "dragon", "radical": "radical.pilot"}


def _missing(engine: str) -> bool:
    try:
        return importlib.util.find_spec(ENGINES[engine]) is None
    except ModuleNotFoundError:  # the parent package is not there either
        return True


# -- lanes and rounds --------------------------------------------------------------------------------------------------

_NIGHTLY = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer the nightly round."""
    parser.addoption("--nightly", action="store_true", help="also run the tests of the nightly round")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the nightly round out unless it is asked for, and put the longest groups first."""
    nightly = [] if config.getoption("--nightly") else [item for item in items if item.get_closest_marker("nightly")]
    config.stash[_NIGHTLY] = len(nightly)
    if nightly:
        config.hook.pytest_deselected(items=nightly)
        left_out = set(nightly)
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: rank(item.nodeid))
    for item in items:
        if not is_measured(item.nodeid):
            item.add_marker("no_cover")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByGroup:
    """Run the tests of one engine, or of one module, in one worker."""
    return ByGroup(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let only the tests of the core measure the processes that they start."""
    config = None if is_measured(item.nodeid) else os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
    try:
        return (yield)
    finally:
        if config is not None:
            os.environ["COVERAGE_PROCESS_CONFIG"] = config


@pytest.hookimpl(wrapper=True, trylast=True)  # within pytest-cov's, which combines the files
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Remove the broken measurements of processes that were killed, which coverage cannot combine."""
    result = yield
    if not hasattr(session.config, "workerinput"):  # one of pytest-xdist's workers has it
        for file in session.config.rootpath.glob(".coverage.*"):
            with contextlib.closing(sqlite3.connect(file)) as connection:
                try:
                    is_sound = connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
                except sqlite3.DatabaseError:
                    is_sound = False
            if not is_sound:
                file.unlink()
    return result


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Report the number of tests left out to the process that prints the summary."""
    output = getattr(session.config, "workeroutput", None)  # of a worker of pytest-xdist
    if output is not None:
        output["nightly"] = session.config.stash.get(_NIGHTLY, 0)


class _FromWorkers:
    """Takes the number from a worker; all have collected the same tests."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Keep it."""
        self._config.stash[_NIGHTLY] = getattr(node, "workeroutput", {}).get("nightly", 0)


def pytest_configure(config: pytest.Config) -> None:
    """Listen to workers."""
    config.pluginmanager.register(_FromWorkers(config))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the nightly round, and the number of its tests."""
    left_out = config.stash.get(_NIGHTLY, 0)
    if left_out:
        terminalreporter.write_line(f"tests of the nightly round, not run: {left_out} (make test-nightly runs them)")


# -- engines -----------------------------------------------------------------------------------------------------------


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


def _helps(process: psutil.Process) -> bool:
    """Whether it is one of multiprocessing's, which live as long as this process and come with its first use."""
    try:
        command = " ".join(process.cmdline())
    except (psutil.Error, OSError):  # it ended just now
        return True
    return "multiprocessing.resource_tracker" in command or "multiprocessing.forkserver" in command


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
        new = [child for child in me.children(recursive=True) if child.pid not in before[1]]
        helpers = [child for child in new if _helps(child)]
        children = [child for child in new if child not in helpers]
        opened = me.num_fds() - descriptors - len(helpers)  # a pipe to each
        if not threads and not children and opened <= 0:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: threads {threads}, processes {children}, {opened} file descriptors")
        time.sleep(0.02)
