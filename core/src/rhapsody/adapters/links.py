"""Files that one task of a workflow engine leaves to another, as symbolic links between their folders.

A backend that declares to link files gives each executable a folder of its own in the engine's. The files of all of
them are visible to this program, which makes the links.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rhapsody.adapters.descriptions import options_of
from rhapsody.model.kinds import EXECUTABLE
from rhapsody.model.task import ComputeTask


class Folders:
    """Where the tasks of one engine run.

    Args:
        work_dir: of the engine; None for the current folder.
        functions: whether a function can have a folder, since it runs in another process.
    """

    def __init__(self, work_dir: str | Path | None, functions: bool) -> None:
        self._work_dir = Path(work_dir or ".").absolute()
        self._functions = functions

    def place(self, description: Mapping[str, Any], task: ComputeTask) -> None:
        """Let an executable run in its folder, and a function where files were linked into it."""
        folder = self._folder_of(description)
        if task.cwd is None and (task.kind is EXECUTABLE or (self._functions and folder.is_dir())):
            folder.mkdir(parents=True, exist_ok=True)
            task.cwd = folder

    def link_all(self, source: Mapping[str, Any], target: Mapping[str, Any]) -> None:
        """Link whatever a task has left in its folder into that of another."""
        with contextlib.suppress(FileNotFoundError):  # a function's, say: it wrote nowhere of its own
            for path in self._folder_of(source).iterdir():
                self._link(path, target, path.name)

    def link(
        self, source: Mapping[str, Any] | None, target: Mapping[str, Any], name: str, path: str | None
    ) -> dict[str, str]:
        """Link one file into the folder of a task, from that of another task or from any path; return what was linked.

        Where it is missing, the task that reads it fails: an engine would end at an exception.
        """
        if path is not None:
            found = Path(path).absolute()
        else:
            found = self._folder_of(source or {}) / name
            if not found.exists():  # of a function, which runs where this program does
                found = Path(name).absolute()
        return {"source": str(found), "target": str(self._link(found, target, name)), "action": "link"}

    def _link(self, path: Path, target: Mapping[str, Any], name: str) -> Path:
        link = self._folder_of(target) / name
        with contextlib.suppress(OSError):  # it is there: an earlier attempt's, or the task's own
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
        return link

    def _folder_of(self, description: Mapping[str, Any]) -> Path:
        given = options_of(description).get("cwd")
        return (
            Path(given).expanduser().absolute() if given else self._work_dir / quote(str(description["uid"]), safe="")
        )
