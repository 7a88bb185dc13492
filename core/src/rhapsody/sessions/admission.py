"""Validate and route submitted tasks, all or nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import attrs

from rhapsody.errors import (
    BackendNotFoundError,
    DuplicateTaskError,
    UnsupportedError,
)
from rhapsody.model.kinds import FUNCTION
from rhapsody.model.references import PLAIN
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.scheduling.runner import BackendRunner, Phase
from rhapsody.sessions.given import described, several
from rhapsody.sessions.graph import Needs, check_parents, needs_of
from rhapsody.sessions.recorder import has_chosen_uid


@attrs.frozen
class Routes:
    """Tasks that are let in.

    Attributes:
        tasks: in the order in which they were submitted.
        groups: those of them that need not wait for others, by backend.
        needs: what the others wait for.
        limited: those that have a timeout or a deadline.
        cached: those whose result may be known.
        dicts: by which some of the tasks were described.
        sharing: those that have shared values in their arguments.
    """

    tasks: list[ComputeTask]
    groups: dict[BackendRunner, list[ComputeTask]]
    needs: dict[ComputeTask, Needs]
    limited: list[ComputeTask]
    cached: list[ComputeTask]
    dicts: dict[ComputeTask, dict[str, Any]]
    sharing: list[ComputeTask]


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
    routes = Routes([], {}, {}, [], [], {}, [])
    accepted, groups = routes.tasks, routes.groups
    without: set[int] = set()  # identities of arguments in which no task is: many tasks may share them
    special: dict[BackendRunner, list[ComputeTask]] = {}
    for item in several(tasks, "submit_tasks"):
        if type(item) is ComputeTask:
            task = item
        else:
            task = described(item, "submit_tasks")
            if isinstance(item, dict):
                routes.dicts[task] = item
        if task.state is not TaskState.NEW:
            raise DuplicateTaskError(f"task {task.uid} was submitted before; a task object is submitted once")
        uid = task.uid
        if uid in seen or uid in live or (uid in names and has_chosen_uid(task)):
            raise DuplicateTaskError(f"session {session} already has a task {uid!r}; uids are unique in a session")
        seen.add(uid)
        runner = default if task.backend is None else runners.get(task.backend)
        if runner is None:
            raise BackendNotFoundError(
                f"task {uid} asks for backend {task.backend!r}; session {session} has {', '.join(runners)}"
            )
        if runner.phase is Phase.LOST:
            runner.refuse()
        if (
            task.kind is not FUNCTION
            or task.resources is not None
            or task.backend_options
            or task.cwd is not None
            or task.environment is not None
        ):
            check_capabilities(task, runner)
            special.setdefault(runner, []).append(task)
        elif not runner.backend.capabilities.functions:
            check_capabilities(task, runner)
        accepted.append(task)
        if task.policies is not None and (_is_limited(task) or task.policies.keep):
            check_capabilities(task, runner)
            if _is_limited(task):
                routes.limited.append(task)
        if task.policies is not None and task.policies.cache:
            routes.cached.append(task)
        if task.policies is not None and task.retries is not None and task.retries.fallback is not None:
            fallback = _fallback_of(task, runners, session)
            check_capabilities(task, fallback)
            special.setdefault(fallback, []).append(task)
        if (
            task.policies is not None
            or task.kwargs
            or task.arguments
            or (task.args and not PLAIN.issuperset(map(type, task.args)))
        ):
            needs = needs_of(task, without)
            if needs is not None and needs.shares:
                routes.sharing.append(task)
            if needs is not None and needs.kept:
                _check_kept(task, runner, needs.kept, runners)
            if needs:
                routes.needs[task] = needs
                continue
        group = groups.get(runner)
        if group is None:
            group = groups[runner] = []
        group.append(task)
    if routes.needs:
        check_parents(routes.needs, frozenset(accepted), session)
    for runner, asking in special.items():
        runner.validate(asking)
    return routes


def _fallback_of(task: ComputeTask, runners: Mapping[str, BackendRunner], session: str) -> BackendRunner:
    assert task.retries is not None
    name = task.retries.fallback
    if name is None or name not in runners:
        raise BackendNotFoundError(
            f"the retries of task {task.uid} fall back to backend {name!r}; session {session} has {', '.join(runners)}"
        )
    return runners[name]


def _check_kept(
    task: ComputeTask, runner: BackendRunner, parents: Iterable[ComputeTask], runners: Mapping[str, BackendRunner]
) -> None:
    """Refuse to move a kept result to where its engine does not bring it."""
    for parent in parents:
        at = runners.get(parent.backend or next(iter(runners)))
        if at is None or not at.backend.capabilities.remote:  # of threads it is the object
            continue
        falls_back = task.retries is not None and task.retries.fallback not in (None, at.name)
        if at is not runner or falls_back or task.kind is not FUNCTION:
            raise UnsupportedError(
                f"task {task.uid} takes the result of task {parent.uid}, which backend {at.name!r} keeps for functions "
                f"that run there; name that backend in it, or give it what `await task.fetch()` returns"
            )


def _is_limited(task: ComputeTask) -> bool:
    policies = task.policies
    return policies is not None and (policies.timeout is not None or policies.deadline is not None)


def check_capabilities(task: ComputeTask, runner: BackendRunner) -> None:
    """Refuse what the backend does not declare.

    Raises:
        UnsupportedError: naming the task, the backend and the option.
    """
    can = runner.backend.capabilities
    need = task.resources
    problems = []
    if not getattr(can, task.kind.capability, False):
        problems.append(f"run {task.kind.capability}")
    if task.kind is FUNCTION and not can.remote and (task.cwd is not None or task.environment is not None):
        problems.append("give a function a cwd or an environment of its own, since it runs in this process")
    if _is_limited(task) and not getattr(can, f"cancel_{task.kind.capability}", False):
        kind = task.kind.capability
        problems.append(f"stop {kind} that run, as timeout and deadline ask (those that declare cancel_{kind} can)")
    if task.keep and not can.keep_results:
        problems.append("keep a result where it is (those that declare keep_results can)")
    if need is not None:
        if need.ranks > 1 and not can.ranks:
            problems.append(f"give a task {need.ranks} ranks")
        if need.cores_per_rank > 1 and not can.cores_per_rank:
            problems.append(f"give a rank {need.cores_per_rank} cores")
        if need.gpus_per_rank and not can.gpus:
            problems.append(f"give a task {need.gpus_per_rank:g} GPUs")
        if need.memory is not None and not can.memory:
            problems.append(f"reserve {need.memory} bytes of memory")
        if need.nodes is not None and not can.nodes:
            problems.append(f"spread a task over {need.nodes} nodes")
        if need.exclusive and not can.exclusive:
            problems.append("give a task nodes of its own")
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
