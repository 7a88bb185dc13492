"""Hands accepted tasks to their backends, once nothing keeps them waiting."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence

from rhapsody.errors import SessionError
from rhapsody.log import get_logger
from rhapsody.model.outcome import CancelResult, Outcome
from rhapsody.model.policies import Limit
from rhapsody.model.references import fill_in_shared, value_of
from rhapsody.model.shared import handles
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.scheduling.canceling import stopped_outcome
from rhapsody.scheduling.instructions import Change, TryAgain
from rhapsody.scheduling.runner import BackendRunner
from rhapsody.sessions.admission import Routes
from rhapsody.sessions.graph import Graph
from rhapsody.sessions.recorder import Recorder, fill_in
from rhapsody.sessions.timeouts import Timeouts

log = get_logger(__name__)


class Dispatcher:
    """Takes the tasks of one session from their submit to their backends, and follows their ends.

    Args:
        session: its uid.
        runners: of its backends, by name; the first is for tasks that name none.
        recorder: of its tasks.
    """

    def __init__(self, session: str, runners: Mapping[str, BackendRunner], recorder: Recorder) -> None:
        self._session = session
        self._runners = runners
        self._recorder = recorder
        self._graph = Graph()
        self._timeouts = Timeouts(self._expire)
        self._delayed: dict[ComputeTask, asyncio.TimerHandle] = {}  # until their next attempts

    def accept(self, routes: Routes, loop: asyncio.AbstractEventLoop, known: Mapping[str, Outcome]) -> None:
        """Take tasks that the admission has let in.

        Args:
            routes: the tasks.
            loop: of the session.
            known: by uid, how tasks end that need not run; these wait for nothing, and reach no backend.
        """
        recorder, needs = self._recorder, routes.needs
        if known:
            needs = {task: need for task, need in needs.items() if task.uid not in known}
        for runner, group in routes.groups.items():
            recorder.tally_of(runner.name).tasks += len(group)
            for task in group:
                task.backend = runner.name  # also of those that named none, for those who observe them
        for task in routes.needs:
            task.backend = task.backend or next(iter(self._runners))
            recorder.tally_of(task.backend).tasks += 1
        for task in routes.sharing:
            self._fill_in_shared(task)
        if not needs:
            recorder.accept(routes.tasks, loop)
        else:
            recorder.accept([task for task in routes.tasks if task not in needs], loop)
            recorder.accept([*needs], loop, TaskState.WAITING)
        self._timeouts.accept(routes.limited)  # before any can end, as the next line
        free = self._graph.add(needs)
        for runner, group in routes.groups.items():
            runner.accept([task for task in group if task.uid not in known] if known else group)
        if known:
            self.record([(task, known[task.uid]) for task in routes.tasks if task.uid in known])
        self._release(free)

    def record(self, changes: Sequence[Change]) -> None:
        """Record what happened to tasks, in order, and release those that waited for it: the runners' sink."""
        self._write(changes)
        if self._graph:
            self._release(self._graph.ended(task for task, event in changes if type(event) is Outcome))

    def _write(self, changes: Sequence[Change]) -> None:
        self._recorder.record(changes)
        if self._timeouts:
            self._timeouts.follow(changes)

    def _release(self, tasks: Sequence[ComputeTask]) -> None:
        """Hand tasks to their backends; those whose parents failed fail, and so do those that wait for them."""
        while tasks:
            ready: list[ComputeTask] = []
            failed: list[Change] = []
            for task in tasks:
                if task not in self._graph:
                    continue
                problem = self._graph.withdraw(task)
                if task.is_final:  # its session has closed without its end
                    continue
                if problem is None:
                    ready.append(task)
                else:
                    failed.append((task, Outcome(task.uid, TaskState.FAILED, exception=problem)))
            if ready:
                failed += self._fill_in(ready)
            ended = [task for task, _ in failed]
            if ended:
                self._write(failed)
                ready = [task for task in ready if not task.is_final]
            if ready:
                self._hand_over(ready)
            tasks = self._graph.ended(ended) if ended else []

    def _fill_in(self, tasks: Sequence[ComputeTask]) -> list[Change]:
        """Put values in place of the tasks in arguments. Returns the ends of those where that is impossible."""
        failed: list[Change] = []
        for task in tasks:
            try:
                fill_in(task, value_of)
            except Exception as error:  # copying is code of the user's
                failed.append((task, Outcome(task.uid, TaskState.FAILED, exception=error)))
        return failed

    def _fill_in_shared(self, task: ComputeTask) -> None:
        """Put shared values, or what stands for them on the way to a worker, in place of their handles."""
        assert task.backend is not None  # since it was accepted
        fill_in_shared(task, remote=self._runners[task.backend].backend.capabilities.remote)

    def _hand_over(self, tasks: Sequence[ComputeTask]) -> None:
        self._recorder.queue(tasks)
        for runner, group in self._by_runner(tasks).items():
            runner.accept(group)

    def try_again(self, again: TryAgain) -> None:
        """Hand a task whose attempt failed to a backend once more, after the delay: the runners' call."""
        task = again.task
        self._timeouts.attempt_ended(task)
        if not self._recorder.set_back(task, again.outcome, again.backend):
            return
        assert task.retries is not None  # since it is tried again
        if task in handles:  # the backend may be another one
            self._fill_in_shared(task)
        delay = again.delay * (1 + task.retries.jitter * random.uniform(-1, 1))  # noqa: S311  # spreads load, no secret
        if delay > 0:
            self._delayed[task] = asyncio.get_running_loop().call_later(delay, self._resume, task)
        else:
            self._hand_over([task])

    def _resume(self, task: ComputeTask) -> None:
        del self._delayed[task]
        if not task.is_final:  # else its session has closed without its end
            self._hand_over([task])

    # -- cancel ----------------------------------------------------------------------------------------------------

    async def cancel(
        self, tasks: Iterable[ComputeTask], *, dependents: bool = False, abandon: bool = False
    ) -> dict[str, CancelResult]:
        """Stop tasks, and say of each what became of it.

        Raises:
            SessionError: a task of another session, or one that was not submitted.
        """
        named = list(tasks)
        results = {task.uid: CancelResult.TOO_LATE for task in named if task.is_final}
        if dependents:
            named += self._graph.dependents(named)
        alive = [task for task in named if not task.is_final]
        for task in alive:
            if self._recorder.tasks.get(task.uid) is not task:
                raise SessionError(f"task {task.uid} is not a task of session {self._session}")
        waiting: list[ComputeTask] = []
        for task in dict.fromkeys(alive):
            if task.policies is not None:
                task.policies.is_unwanted = True  # before anything is awaited: it could be set back meanwhile
            if self._withdraw(task):
                waiting.append(task)
        self._end(waiting)  # before any other: a task that is named is canceled, also where its parent is too
        results |= {task.uid: CancelResult.NEVER_STARTED for task in waiting}
        groups = self._by_runner(task for task in alive if not task.is_final)
        for answer in await asyncio.gather(*(runner.cancel(group) for runner, group in groups.items())):
            results |= answer
        if abandon:
            left = [task for group in groups.values() for task in group if not task.is_final]
            self._end(left)
            results |= {task.uid: CancelResult.ABANDONED for task in left}
        return results

    def _withdraw(self, task: ComputeTask) -> bool:
        """Take a task back that is with no backend: it waits for others, or for its next attempt."""
        if task in self._graph:
            self._graph.withdraw(task)
        elif task in self._delayed:
            self._delayed.pop(task).cancel()
        else:
            return False
        return True

    def _end(self, tasks: Sequence[ComputeTask]) -> None:
        self.record([(task, stopped_outcome(task)) for task in tasks])

    async def _expire(self, task: ComputeTask, limit: Limit) -> None:
        """Stop a task whose time is over."""
        if task.is_final:
            return
        assert task.backend is not None  # since it was accepted
        runner = self._runners[task.backend]
        if limit == "timeout":
            await runner.expire(task)
        elif self._withdraw(task):
            self._end([task])
        elif (await runner.cancel([task]))[task.uid] is CancelResult.CANNOT_STOP:
            log.warning("deadline_cannot_stop", backend=runner.name, task=task.uid)

    def close(self) -> None:
        """Leave nothing to come: the session is closed."""
        self._timeouts.close()
        for timer in self._delayed.values():
            timer.cancel()
        self._delayed.clear()

    def _by_runner(self, tasks: Iterable[ComputeTask]) -> dict[BackendRunner, list[ComputeTask]]:
        groups: dict[BackendRunner, list[ComputeTask]] = {}
        for task in tasks:
            assert task.backend is not None  # since it was accepted
            groups.setdefault(self._runners[task.backend], []).append(task)
        return groups

    # -- explain ---------------------------------------------------------------------------------------------------

    def explain(self, task: ComputeTask) -> str:
        """Return a sentence that says what a task waits for, or what it does.

        Raises:
            SessionError: a task of another session.
        """
        if task.state is TaskState.NEW:
            return f"task {task.uid} was not submitted"
        if task.session != self._session:
            raise SessionError(f"task {task.uid} is not a task of session {self._session}")
        if task in self._graph:
            parents = self._graph.waited_for(task)
            shown = ", ".join(f"{parent.uid} ({parent.state})" for parent in parents[:3])
            more = f" and {len(parents) - 3} more" if len(parents) > 3 else ""
            return f"task {task.uid} waits for {'task' if len(parents) == 1 else 'tasks'} {shown}{more}"
        if task in self._delayed:
            seconds = self._delayed[task].when() - asyncio.get_running_loop().time()
            return f"task {task.uid} waits {seconds:.1f} seconds for attempt {len(task.attempts) + 1}"
        (runner,) = self._by_runner([task])
        return runner.explain(task)
