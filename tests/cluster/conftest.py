"""One cluster for all tests of this folder, and scripts that run on it as a user's do."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from .machines import LOGIN, Cluster

# Only `make test-cluster` runs these: they need root, Slurm and sshd.
if not os.environ.get("RHAPSODY_CLUSTER"):
    collect_ignore_glob = ["test_*.py"]

HANG = 120.0  # seconds
# Of the nodes themselves; and what Dask leaves of a cluster of the user's own, its logs among it.
KEPT = re.compile(r"node\.sh|munged|sshd|slurm(ctld|d|scriptd|stepd)|sleep infinity|ps -eo|^/tmp/(slurm|dask-)")


@pytest.fixture(scope="session")
def running() -> Iterator[Cluster]:
    """The cluster, as long as the tests run."""
    one = Cluster()
    try:
        try:
            one.start()
        except RuntimeError as error:  # of the machine, not of what is tested
            pytest.exit(f"tests on a cluster: not run, {error}", returncode=0)
        yield one
    finally:
        one.end()


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    """The cluster with all of its nodes up; whatever a test left there is ended."""
    yield running
    running.run(LOGIN, "scancel", "--user=root", check=False)
    running.restore()


class Script:
    """A script that runs on a node, and prints lines: what it has come to, or results as JSON."""

    def __init__(self, cluster: Cluster, command: Sequence[str], node: str = LOGIN) -> None:
        self._errors = cluster.folder / "log" / "script.txt"
        with self._errors.open("w") as errors:
            self.process = cluster.popen(node, *command, stdin=subprocess.PIPE, stderr=errors, start_new_session=True)

    def expect(self, word: str) -> list[Any]:
        """Read lines until one begins with a word; returns what follows it, as JSON."""
        assert self.process.stdout is not None
        seen = []
        for line in self.process.stdout:
            first, _, rest = line.strip().partition(" ")
            if first == word:
                return json.loads(rest or "[]")  # type: ignore[no-any-return]  # a list, by the scripts of these tests
            seen.append(line)
        raise AssertionError(f"never printed {word!r}, but {seen} and {self.errors}")

    def go_on(self) -> None:
        """Let it go on, where it waits for a line."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def finish(self) -> None:
        """Wait for its end, which must be a good one."""
        out, _ = self.process.communicate(timeout=HANG)
        assert self.process.returncode == 0, f"{out}\n{self.errors}"

    @property
    def errors(self) -> str:
        return self._errors.read_text(errors="replace")[-6000:]

    def end(self) -> None:
        """End it, should the test have failed."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def script(cluster: Cluster) -> Iterator[Callable[..., Script]]:
    """Start a script of this folder on the login node: `script("lost.py", "dask")`."""
    started: list[Script] = []

    def start(name: str, *arguments: str, launcher: Sequence[str] = ("python",), node: str = LOGIN) -> Script:
        for source in Path(__file__).parent.glob("scripts/*.py"):
            shutil.copy(source, cluster.home)
        started.append(Script(cluster, [*launcher, name, *arguments], node))
        return started[-1]

    yield start
    for one in started:
        one.end()


def left(cluster: Cluster) -> dict[str, list[str]]:
    """Return what is left on the nodes that is not theirs: processes, and files of shared memory and of `/tmp`."""
    found = {}
    for node in [LOGIN, *cluster.compute]:
        files = cluster.run(node, "find", "/tmp", "/dev/shm", "-mindepth", "1").stdout.splitlines()
        if names := [name for name in [*cluster.processes(node), *files] if not KEPT.search(name)]:
            found[node] = names
    return found


def wait_until_clean(cluster: Cluster, seconds: float = 30.0) -> None:
    """Fail if anything is left on the nodes after a while."""
    deadline = time.monotonic() + seconds
    while found := left(cluster):
        assert time.monotonic() < deadline, f"left behind: {found}"
        time.sleep(0.2)


def wait_until(condition: Callable[[], object], what: str, seconds: float = HANG) -> None:
    """Wait for something that must become true; `seconds` is only for a hang."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {seconds:g} seconds: {what}"
        time.sleep(0.1)
