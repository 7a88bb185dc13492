"""Which tasks wait for which others: without I/O, and without recursion."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import attrs

from rhapsody.errors import DependencyError, InvalidTaskError
from rhapsody.model.references import named_in
from rhapsody.model.states import FINAL_STATES, TaskState
from rhapsody.model.task import ComputeTask


@attrs.frozen
class Needs:
    """What one task waits for.

    Attributes:
        done: tasks that must be DONE: those in its arguments, and its `after`.
        ended: tasks that must have ended, however: its `after_any`.
        shares: whether there are shared values in its arguments.
        kept: tasks in its arguments whose results stay where they are.
    """

    done: Collection[ComputeTask]
    ended: Collection[ComputeTask] = ()
    shares: bool = False
    kept: Sequence[ComputeTask] = ()

    def __bool__(self) -> bool:
        """Whether it waits for anything."""
        return bool(self.done or self.ended)


def needs_of(task: ComputeTask, without: set[int]) -> Needs | None:
    """Return what a task waits for; None where it waits for nothing, and nothing shared is in its arguments.

    Args:
        task: as the user described it.
        without: identities of objects in which no task was found before; more are added.
    """
    named = named_in([task.args, task.kwargs, task.arguments], without)
    parents = [each for each in named if isinstance(each, ComputeTask)]
    done = dict.fromkeys([*parents, *task.after])  # not a list: membership is asked for at the end of each of them
    ended = dict.fromkeys(parent for parent in task.after_any if parent not in done)
    kept = [parent for parent in parents if parent.policies is not None and parent.policies.keep]
    return Needs(done, ended, len(parents) < len(named), kept) if named or done or ended else None


def check_parents(needs: Mapping[ComputeTask, Needs], submitted: Collection[ComputeTask], session: str) -> None:
    """Refuse tasks that wait for what will never end in this session.

    Args:
        needs: of the tasks that are submitted together and wait for others.
        submitted: all tasks that are submitted together.
        session: uid of the session.

    Raises:
        InvalidTaskError: a parent was not submitted, or belongs to another session; or tasks wait for each other.
    """
    for task, need in needs.items():
        for parent in (*need.done, *need.ended):
            if parent in submitted or parent.session == session:
                continue
            if parent.state is TaskState.NEW:
                raise InvalidTaskError(
                    f"task {task.uid} waits for task {parent.uid}, which was not submitted; submit it before, or in "
                    f"the same list"
                )
            raise InvalidTaskError(
                f"task {task.uid} waits for task {parent.uid}, which is a task of session {parent.session}, "
                f"not of {session}"
            )
    _check_cycles(needs)


def _check_cycles(needs: Mapping[ComputeTask, Needs]) -> None:
    before: set[ComputeTask] = set()
    for task, need in needs.items():
        if any(parent in needs and parent not in before for parent in (*need.done, *need.ended)):
            break
        before.add(task)
    else:  # each comes after what it waits for, as most scripts have it
        return
    left: dict[ComputeTask, set[ComputeTask]] = {}
    children: dict[ComputeTask, list[ComputeTask]] = {}
    for task, need in needs.items():
        left[task] = {parent for parent in (*need.done, *need.ended) if parent in needs}
        for parent in left[task]:
            children.setdefault(parent, []).append(task)
    free = [task for task, parents in left.items() if not parents]
    while free:
        task = free.pop()
        del left[task]
        for child in children.get(task, ()):
            left[child].discard(task)
            if not left[child]:
                free.append(child)
    if not left:
        return
    path: dict[ComputeTask, None] = {}
    task = next(iter(left))
    while task not in path:
        path[task] = None
        task = next(iter(left[task]))
    circle = [*path][[*path].index(task) :]
    shown = [each.uid for each in circle[:5]] + (["..."] if len(circle) > 5 else []) + [task.uid]
    raise InvalidTaskError(f"tasks wait for each other: {' for '.join(shown)}")


class Graph:
    """The tasks of one session that wait for others."""

    def __init__(self) -> None:
        self._needs: dict[ComputeTask, Needs] = {}
        self._left: dict[ComputeTask, int] = {}  # parents that have not ended, of each task that waits
        self._children: dict[ComputeTask, list[ComputeTask]] = {}  # of each task for which others wait

    def __bool__(self) -> bool:
        """Whether any task waits for another."""
        return bool(self._needs)

    def __contains__(self, task: ComputeTask) -> bool:
        """Whether a task waits here."""
        return task in self._needs

    def add(self, needs: Mapping[ComputeTask, Needs]) -> list[ComputeTask]:
        """Have tasks wait. Returns those for which there is nothing to wait."""
        for task, need in needs.items():
            left = 0
            for parent in (*need.done, *need.ended):
                if parent.state not in FINAL_STATES:
                    left += 1
                    self._children.setdefault(parent, []).append(task)
            self._needs[task] = need
            self._left[task] = left
        return [task for task, need in needs.items() if not self._left[task] or _obstacle(need.done) is not None]

    def ended(self, tasks: Iterable[ComputeTask]) -> list[ComputeTask]:
        """Take the ends of tasks. Returns those that need not wait any longer, since they can run, or never can."""
        free: dict[ComputeTask, None] = {}
        for parent in tasks:
            failed = parent.state is not TaskState.DONE
            for child in self._children.pop(parent, ()):
                if child not in self._left:  # it was withdrawn, or failed for another parent
                    continue
                self._left[child] -= 1
                if not self._left[child] or (failed and child not in free and parent in self._needs[child].done):
                    free[child] = None
        return list(free)

    def withdraw(self, task: ComputeTask) -> Exception | None:
        """Have a task wait no longer. Returns why it cannot run, where a parent failed."""
        need = self._needs.pop(task)
        del self._left[task]
        parent = _obstacle(need.done)
        return None if parent is None else dependency_error(task, parent)

    def waited_for(self, task: ComputeTask) -> list[ComputeTask]:
        """Return the parents of a waiting task that have not ended."""
        need = self._needs[task]
        return [parent for parent in (*need.done, *need.ended) if not parent.is_final]

    def dependents(self, tasks: Iterable[ComputeTask]) -> list[ComputeTask]:
        """Return the tasks that wait for these, and those that wait for them, and so on."""
        found: dict[ComputeTask, None] = {}
        left = list(tasks)
        while left:
            for child in self._children.get(left.pop(), ()):
                if child in self._needs and child not in found:
                    found[child] = None
                    left.append(child)
        return list(found)


def _obstacle(parents: Iterable[ComputeTask]) -> ComputeTask | None:
    """Return the first of some tasks that has ended and is not DONE."""
    for parent in parents:
        if parent.state is not TaskState.DONE and parent.state in FINAL_STATES:
            return parent
    return None


def dependency_error(task: ComputeTask, parent: ComputeTask) -> DependencyError:
    """Return why a task cannot run whose parent failed or was canceled: the error of the first that did."""
    cause = parent.exception
    root = parent.uid
    if isinstance(cause, DependencyError):
        root, cause = cause.root, cause.__cause__
    error = DependencyError(task.uid, root, f"{type(cause).__name__}: {cause}")
    error.__cause__ = cause
    return error
