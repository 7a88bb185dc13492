"""Read what a user gives to a session: backends, tasks, lists of tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rhapsody import settings
from rhapsody.errors import (
    InvalidBackendError,
    InvalidTaskError,
    SessionError,
    describe,
)
from rhapsody.model.states import FINAL_STATES
from rhapsody.model.task import ComputeTask
from rhapsody.seam.backend import AttachableBackend
from rhapsody.seam.context import unique_uid
from rhapsody.seam.discovery import make_backend

Item = TypeVar("Item")
Named = TypeVar("Named", bound=ComputeTask | dict[str, Any])  # how a user names a task that was submitted
Backends = Iterable[AttachableBackend | str] | Mapping[str, AttachableBackend | str] | AttachableBackend | str


def named(uid: str | None, work_dir: str | Path | None) -> tuple[str, Path]:
    """Return the name of a session, and the folder that its own folder is in.

    Raises:
        SessionError: the name cannot be a folder's.
    """
    if uid is not None and (not isinstance(uid, str) or not uid or "/" in uid or uid in (".", "..")):
        raise SessionError(f"the uid of a session names a folder; {describe(uid)} cannot")
    resumed = settings.resumed_session() if uid is None and work_dir is None else None
    if resumed is not None:
        return resumed.name, resumed.parent
    folder = settings.work_dir() if work_dir is None else Path(work_dir).expanduser().absolute()
    return uid or unique_uid(), folder


def several(tasks: Iterable[Item] | None, method: str) -> Iterable[Item]:
    """Return what a method of the session was given for several tasks.

    Raises:
        InvalidTaskError: it is one task, or nothing to iterate over.
    """
    if isinstance(tasks, ComputeTask | Mapping | str) or not isinstance(tasks, Iterable):
        raise InvalidTaskError(f"{method} takes a list of tasks, not {describe(tasks)}")
    return tasks


def described(item: object, method: str) -> ComputeTask:
    """Return the task that a user gave, or described by a mapping.

    Raises:
        InvalidTaskError: it is neither.
    """
    if isinstance(item, ComputeTask):
        return item
    if isinstance(item, Mapping):
        if item.get("state") in FINAL_STATES:  # the dict of a task that has ended describes a new one
            item = {field: value for field, value in item.items() if field != "uid"}
        return ComputeTask.from_dict(item)
    raise InvalidTaskError(f"{method} takes tasks and mappings, not {describe(item)}")


def submitted(tasks: Iterable[Any], method: str) -> list[ComputeTask]:
    """Return tasks that a user names once more.

    Raises:
        InvalidTaskError: what is named is no task; a future, say.
    """
    named = list(several(tasks, method))
    for task in named:
        if type(task) is not ComputeTask and not isinstance(task, ComputeTask):
            raise InvalidTaskError(
                f"{method} takes the tasks that were submitted, not {describe(task)}; "
                f"what submit_tasks returns is awaited as asyncio's futures are"
            )
    return named


def instances(backends: Backends | None) -> list[AttachableBackend]:
    """Turn what the user gave into backends: all of them, or an error."""
    if backends is None:
        backends = [settings.default_backend()]
    if isinstance(backends, str | AttachableBackend):
        backends = [backends]
    if isinstance(backends, Mapping):
        named = []
        for name, given in backends.items():
            backend = _instance(given)
            backend.name = name
            named.append(backend)
    else:
        named = [_instance(given) for given in backends]
    if not named:
        raise SessionError("a session needs at least one backend")
    return named


def _instance(given: object) -> AttachableBackend:
    if isinstance(given, str):
        return make_backend(given)
    if isinstance(given, AttachableBackend):
        if not hasattr(given, "name"):
            raise InvalidBackendError(
                f"{type(given).__name__} was not made as a backend is: its __init__ must call super().__init__(name)"
            )
        return given
    hint = f"; did you mean {given.__name__}()" if isinstance(given, type) else ""
    raise InvalidBackendError(f"backends are names or instances of ExecutionBackend, not {describe(given)}{hint}")
