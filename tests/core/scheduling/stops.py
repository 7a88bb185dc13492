"""How tasks of a history are stopped: by a cancel, at a timeout, or at a deadline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rhapsody.api import CancelResult, TaskState
from rhapsody.plugin import Event, Outcome
from rhapsody.scheduling.canceling import expire_steps
from rhapsody.scheduling.instructions import AskCancel, AwaitEnds, AwaitSubmit, Deliver, TryAgain

from tests.core.scheduling.promise import Cancel, Promise

Item = TypeVar("Item")


class Stops(Promise):
    """The part of a history that stops tasks."""

    choices: Iterator[int]
    now: float
    channel: list[Event]
    cancels: list[Cancel]
    unwanted: set[str]

    def carry_out(self, instructions: list[Any]) -> None:
        raise NotImplementedError

    def one_of(self, items: Sequence[Item]) -> Item:
        return items[next(self.choices, 0) % len(items)]

    def some_of(self, items: Sequence[Item]) -> list[Item]:
        return list(dict.fromkeys(self.one_of(items) for _ in range(self.one_of([1, 2, 3, 4]))))

    def cancel(self) -> None:
        alive = [task for task in self.accepted if not task.is_final]
        tasks = self.some_of(self.one_of([alive, self.accepted]) or self.accepted) if self.accepted else []
        tasks = [task for task in tasks if task not in self.delayed]  # the session withdraws those
        self.begin(Cancel(tasks, self.flow.cancel(tasks)))

    def begin(self, cancel: Cancel) -> None:
        self.cancels.append(cancel)
        self.go_on(cancel, None)

    def timeout_passes(self) -> None:
        """The attempt of a task is to be stopped; the task may be tried again."""
        task = self.one_of([task for task in self.accepted if task.state is TaskState.RUNNING])
        if task.uid in self.flow.expiring._held:  # it has passed before
            return
        if task.timeout is not None and task.policies is not None and not task.policies.is_unwanted:
            task.policies.expired = "timeout"
            self.begin(Cancel([task], expire_steps(self.flow, task), is_final=False))

    def deadline_passes(self) -> None:
        """A task is to be stopped for good, whether it waits or runs."""
        task = self.one_of(self.accepted)
        if task.deadline is None or task.policies is None or task.is_final or task in self.delayed:
            return
        if not task.policies.is_unwanted:
            task.policies.expired, task.policies.is_unwanted = "deadline", True
            self.begin(Cancel([task], self.flow.cancel([task])))

    def go_on(self, cancel: Cancel, answer: Mapping[str, CancelResult] | None) -> None:
        """Carry on to the next step for which something else must happen first."""
        try:
            cancel.step = cancel.steps.send(answer)
            while isinstance(cancel.step, Deliver | TryAgain):
                self.carry_out([cancel.step])
                cancel.step = cancel.steps.send(None)
            if isinstance(cancel.step, AskCancel):
                assert self.flow.is_open
                if cancel.is_final:
                    self.unwanted |= {task.uid for task in cancel.step.tasks}
        except StopIteration as end:
            self.cancels.remove(cancel)
            if cancel.is_final:
                self.check_answer(cancel, end.value)

    def cancel_goes_on(self) -> None:
        cancel = self.one_of(self.cancels)
        if isinstance(cancel.step, AskCancel):
            cancel.said = self.stop(cancel) if self.one_of([True, True, False]) else {}
            self.go_on(cancel, cancel.said)
        elif isinstance(cancel.step, AwaitSubmit):
            if self.pending is None:
                self.go_on(cancel, None)
        else:
            assert isinstance(cancel.step, AwaitEnds)
            left = [task for task in cancel.tasks if task.uid in cancel.step.uids and not task.is_final]
            cancel.gave_up |= bool(left) and self.one_of([False, False, True])
            if not left or cancel.gave_up:
                self.go_on(cancel, None)

    def stop(self, cancel: Cancel) -> dict[str, CancelResult]:
        """The engine stops what it can: what waits, and every second of what runs."""
        answer: dict[str, CancelResult] = {}
        for task in cancel.step.tasks:
            if task in self.queued:
                self.queued.remove(task)
                self.channel.append(Outcome(task.uid, TaskState.CANCELED))
                answer[task.uid] = CancelResult.NEVER_STARTED
            elif task in self.running and len(task.uid) % 2:
                self.running.remove(task)
                self.channel.append(Outcome(task.uid, TaskState.CANCELED, started_at=self.now))
                answer[task.uid] = CancelResult.STOPPED
            else:
                answer[task.uid] = CancelResult.CANNOT_STOP if task in self.running else CancelResult.TOO_LATE
        return answer
