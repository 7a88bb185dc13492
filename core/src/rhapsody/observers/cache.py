"""Results of tasks that are marked `cache`, kept across sessions by the content of the task."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from rhapsody.hookspecs import ObservedSession, hookimpl
from rhapsody.log import get_logger
from rhapsody.model.outcome import Outcome
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.model.transition import Transition, changes_of
from rhapsody.observers.content import Contents
from rhapsody.observers.journal.results import pickled

log = get_logger(__name__)
FOLDER: Final = "rhapsody.cache"  # in the session's work_dir
_VERSION: Final = 1  # of an entry; one of another version is not used
_FIELDS: Final = ("return_value", "exit_code", "stdout", "stderr")


class Cache:
    """Answers for tasks whose result is known, and keeps the results of those that ran.

    An entry is a file of its own, written under another name first: sessions share the folder without a lock.

    Args:
        session: to be observed.
    """

    def __init__(self, session: ObservedSession) -> None:
        self._folder = session.work_dir / FOLDER
        self._contents = Contents()
        self._keys: dict[str, str] = {}  # by uid, of tasks that run
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="rhapsody cache")

    @hookimpl
    def rhapsody_tasks_submitted(self, tasks: Sequence[ComputeTask]) -> dict[str, Outcome]:
        """Return the ends that are known."""
        known: dict[str, Outcome] = {}
        for task in tasks:
            if task.policies is None or not task.policies.cache:
                continue
            key = self._contents.call_of(task).key
            if key is None or task.capture_stdio or task.stdout_file or task.stderr_file:
                reason = "no content" if key is None else "its output goes to files"  # which another session has not
                log.warning("task_not_cached", task=task.uid, reason=reason)
            elif (found := _read(_path(self._folder, key), key)) is None:
                self._keys[task.uid] = key
            else:
                known[task.uid] = Outcome(task.uid, TaskState.DONE, **found)
        return known

    @hookimpl
    def rhapsody_tasks_changed(self, transitions: Sequence[Transition]) -> None:
        """Keep results."""
        if not self._keys:
            return
        for task, _, new, _ in changes_of(transitions):
            if new.is_final and (key := self._keys.pop(task.uid, None)) is not None and new is TaskState.DONE:
                entry = pickled((_VERSION, key, {name: getattr(task, name) for name in _FIELDS}))
                if isinstance(entry, str):
                    log.warning("task_not_cached", task=task.uid, reason=entry)
                else:
                    self._writer.submit(_write, _path(self._folder, key), entry)

    @hookimpl
    def rhapsody_session_closed(self) -> None:
        """Wait until the results are written."""
        self._writer.shutdown()


def entries(work_dir: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the files of the results that are kept; the time of a file is that of its last use."""
    with contextlib.suppress(FileNotFoundError), os.scandir(work_dir / FOLDER) as found:
        yield from (entry for entry in found if entry.is_file())


def _path(folder: Path, key: str) -> Path:
    return folder / f"{hashlib.blake2b(key.encode(), digest_size=20).hexdigest()}.pickle"


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """Return the fields of an outcome; None where there is none that can be used."""
    try:
        version, kept_key, fields = pickle.loads(path.read_bytes())
        if version != _VERSION or kept_key != key:
            return None
        os.utime(path)
    except FileNotFoundError:
        return None
    except Exception as error:  # it is damaged, or its class is not there any more
        log.warning("result_not_recalled", path=str(path), error=repr(error), consequence="the task runs again")
        return None
    return dict(fields)


def _write(path: Path, entry: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
        unfinished.write_bytes(entry)
        unfinished.rename(path)
    except OSError as error:  # the disk is full, say: the next session runs the task again
        log.warning("result_not_kept", path=str(path), error=str(error))
