"""What a session lets in: the backends that a user gave, and the tasks; all of a list, or none of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

import attrs

from . import settings
from .backends.base import ExecutionBackend
from .discovery import get_backend
from .errors import (
    BackendNotFoundError,
    DuplicateTaskError,
    InvalidBackendError,
    InvalidTaskError,
    SessionError,
    UnsupportedError,
    describe,
)
from .runner import BackendRunner, Phase
from .states import TaskState
from .task import ComputeTask

Item = TypeVar("Item")
Backends = Iterable[ExecutionBackend | str] | Mapping[str, ExecutionBackend | str] | ExecutionBackend | str


@attrs.frozen
class Routes:
    """Tasks that are let in.

    Attributes:
        tasks: in the order in which they were submitted.
        groups: the same, by backend.
    """

    tasks: list[ComputeTask]
    groups: dict[BackendRunner, list[ComputeTask]]


def route(
    tasks: Iterable[ComputeTask | Mapping[str, Any]],
    runners: Mapping[str, BackendRunner],
    *,
    session: str,
    live: Collection[str],
    names: Collection[str],
) -> Routes:
    """Check every task, and find the backend of each. Changes nothing.

    Args:
        tasks: what the user submits.
        runners: by name; the first is for tasks that name none.
        session: uid of the session, for errors.
        live: uids of the tasks that have not ended.
        names: uids that users chose for any task before.

    Raises:
        InvalidTaskError, DuplicateTaskError, UnsupportedError, BackendNotFoundError: of the first bad task.
        BackendLostError: the engine of a task's backend is gone.
    """
    default = next(iter(runners.values()))
    seen: set[str] = set()
    routes = Routes([], {})
    accepted, groups = routes.tasks, routes.groups
    special: dict[BackendRunner, list[ComputeTask]] = {}
    for item in several(tasks, "submit_tasks"):
        task = item if type(item) is ComputeTask else described(item, "submit_tasks")
        if task.state is not TaskState.NEW:
            raise DuplicateTaskError(f"task {task.uid} was submitted before; a task object is submitted once")
        uid = task.uid
        if uid in seen or uid in live or (task._named and uid in names):
            raise DuplicateTaskError(f"session {session} already has a task {uid!r}; uids are unique in a session")
        seen.add(uid)
        runner = default if task.backend is None else runners.get(task.backend)
        if runner is None:
            raise BackendNotFoundError(
                f"task {uid} asks for backend {task.backend!r}; session {session} has {', '.join(runners)}"
            )
        if runner.phase is Phase.LOST:
            runner.refuse()
        if task.function is None or task.resources is not None or task.backend_options:
            check_capabilities(task, runner)
            special.setdefault(runner, []).append(task)
        elif not runner.backend.capabilities.functions:
            check_capabilities(task, runner)
        accepted.append(task)
        group = groups.get(runner)
        if group is None:
            group = groups[runner] = []
        group.append(task)
    for runner, asking in special.items():
        runner.validate(asking)
    return routes


def several(tasks: Iterable[Item], method: str) -> Iterable[Item]:
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
        return ComputeTask.from_dict(item)
    raise InvalidTaskError(f"{method} takes tasks and mappings, not {describe(item)}")


def submitted(tasks: Iterable[ComputeTask], method: str) -> list[ComputeTask]:
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


def check_capabilities(task: ComputeTask, runner: BackendRunner) -> None:
    """Refuse what the backend does not declare.

    Raises:
        UnsupportedError: naming the task, the backend and the option.
    """
    can = runner.backend.capabilities
    need = task.resources
    problems = []
    if task.function is not None and not can.functions:
        problems.append("run functions")
    if task.executable is not None and not can.executables:
        problems.append("run executables")
    if need is not None:
        if (need.ranks > 1 or need.cores_per_rank > 1) and not can.ranks:
            problems.append(f"give a task {need.ranks} ranks of {need.cores_per_rank} cores")
        if need.gpus_per_rank and not can.gpus:
            problems.append(f"give a task {need.gpus_per_rank:g} GPUs")
        if need.memory is not None and not can.memory:
            problems.append(f"reserve {need.memory} bytes of memory")
    if task.backend_options and can.options is not None:
        unknown = [key for key in task.backend_options if key not in can.options]
        if unknown:
            known = f"it knows {', '.join(sorted(can.options))}" if can.options else "it knows none"
            problems.append(f"honour the options {', '.join(map(repr, unknown))} ({known})")
    if problems:
        raise UnsupportedError(
            f"task {task.uid}: backend {runner.name!r} cannot {', nor '.join(problems)}; change the task, or name "
            f"another backend in it"
        )


def instances(backends: Backends | None) -> list[ExecutionBackend]:
    """Turn what the user gave into backends: all of them, or an error."""
    if backends is None:
        backends = [settings.default_backend()]
    if isinstance(backends, str | ExecutionBackend):
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


def _instance(given: object) -> ExecutionBackend:
    if isinstance(given, str):
        return get_backend(given)
    if isinstance(given, ExecutionBackend):
        return given
    hint = f"; did you mean {given.__name__}()" if isinstance(given, type) else ""
    raise InvalidBackendError(f"backends are names or instances of ExecutionBackend, not {describe(given)}{hint}")
