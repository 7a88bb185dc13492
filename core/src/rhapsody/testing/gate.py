"""Tasks of the suite that run until they are let go."""

from __future__ import annotations

from pathlib import Path

from rhapsody.model.task import ComputeTask
from rhapsody.seam.capabilities import BackendCapabilities
from rhapsody.testing import tasks as functions

__tracebackhide__ = True  # frames of the suite


class Gate:
    """Tasks that wait at it run until it is opened.

    Args:
        folder: seen by the workers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self) -> None:
        """Let every task end."""
        (self.folder / "open").touch()

    def function(self, name: str) -> ComputeTask:
        """Return a function task that waits."""
        return ComputeTask(function=functions.wait_at, args=(str(self.folder), name))

    def executable(self, name: str, before: str = "") -> ComputeTask:
        """Return an executable that waits; it writes its process id to `name.began`."""
        script = (
            f'{before} echo $$ > "$1/$2.tmp"; mv "$1/$2.tmp" "$1/$2.began"; '
            f'while [ ! -e "$1/open" ]; do sleep 0.05; done'
        )
        return ComputeTask(executable="/bin/sh", arguments=["-c", script, "sh", str(self.folder), name])

    def task(self, name: str, can: BackendCapabilities) -> ComputeTask:
        """Return whatever task the backend can run, waiting."""
        return self.function(name) if can.functions else self.executable(name)

    def began(self) -> set[str]:
        """Return the names of the tasks that a worker has begun."""
        return {path.stem for path in self.folder.glob("*.began")}

    def pid(self, name: str) -> int:
        """Return the process of a task that began."""
        return int((self.folder / f"{name}.began").read_text())
