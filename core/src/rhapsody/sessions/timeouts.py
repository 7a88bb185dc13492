"""The clocks of tasks with a limit of time: a `timeout` for each attempt, a `deadline` for all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from rhapsody.model.outcome import Started
from rhapsody.model.policies import Limit
from rhapsody.model.task import ComputeTask
from rhapsody.scheduling.instructions import Change


class Timeouts:
    """Stops the tasks of one session whose time is over; false while no task has a limit.

    Args:
        stop: stops a task, or only its attempt where that has run for its timeout.
    """

    def __init__(self, stop: Callable[[ComputeTask, Limit], Coroutine[Any, Any, None]]) -> None:
        self._stop = stop
        self._timers: dict[ComputeTask, dict[Limit, asyncio.TimerHandle]] = {}  # of all that have a limit
        self._stopping: set[asyncio.Task[None]] = set()

    def __bool__(self) -> bool:
        """Whether any task that has not ended has a limit."""
        return bool(self._timers)

    def accept(self, tasks: Sequence[ComputeTask]) -> None:
        """Take tasks that have a limit, at their submit: deadlines count from now."""
        for task in tasks:
            self._timers[task] = {}
            if task.deadline is not None:
                self._start(task, "deadline", task.deadline)

    def follow(self, changes: Sequence[Change]) -> None:
        """Follow what was recorded of tasks: a start begins the time of a timeout, an end stops both clocks."""
        for task, event in changes:
            if task not in self._timers:
                continue
            if task.is_final:
                self._cancel(*self._timers.pop(task).values())
            elif type(event) is Started and task.timeout is not None:
                self._start(task, "timeout", task.timeout)

    def attempt_ended(self, task: ComputeTask) -> None:
        """Forget how long the latest attempt of a task ran: another follows."""
        timer = self._timers[task].pop("timeout", None) if task in self._timers else None
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Leave no clock behind: every task has ended."""
        for timers in self._timers.values():
            self._cancel(*timers.values())
        self._timers.clear()
        self._cancel(*self._stopping)

    def _start(self, task: ComputeTask, limit: Limit, seconds: float) -> None:
        self._timers[task][limit] = asyncio.get_running_loop().call_later(seconds, self._expire, task, limit)

    def _expire(self, task: ComputeTask, limit: Limit) -> None:
        policies = task.policies
        assert policies is not None  # since it has a limit
        if task.is_final or policies.is_unwanted:  # it is being canceled, and ends so
            return
        policies.expired = limit
        policies.is_unwanted = limit == "deadline"
        stopping = asyncio.create_task(self._stop(task, limit), name=f"rhapsody {limit} of {task.uid}")
        self._stopping.add(stopping)
        stopping.add_done_callback(self._stopping.discard)

    def _cancel(self, *work: asyncio.TimerHandle | asyncio.Task[None]) -> None:
        for each in work:
            each.cancel()
