"""Mutants whose reports or results are wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from rhapsody.plugin import (
    Event,
    Outcome,
    Started,
    TaskBatch,
    TaskState,
    hookimpl,
)

from .base import Mutant, mutant


@mutant("test_ten_thousand_tasks_all_end_once", "has reported no Outcome")
class LosesOneEventInAThousand(Mutant):
    count = 0

    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome):
            self.count += 1
            if self.count % 1000 == 0:
                return []
        return [event]


@mutant("test_events_keep_the_contract", "report exactly one Outcome for each task")
class ReportsTwice(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        return [event, event] if isinstance(event, Outcome) else [event]


@mutant("test_events_keep_the_contract", "put Started into the channel before the task's Outcome")
class ReportsRunningAfterDone(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        return [event, Started(event.uid, time.time())] if isinstance(event, Outcome) else [event]


@mutant("test_events_keep_the_contract", "Outcome(FAILED) of task")
class FailsWithoutSayingWhy(Mutant):
    count = 0

    def tamper(self, event: Event) -> Sequence[Event]:
        self.count += isinstance(event, Outcome)
        if isinstance(event, Outcome) and self.count == 100:
            event.state, event.exception = TaskState.FAILED, None
        return [event]


@mutant("test_running_means_a_worker_runs_it", "when a worker begins the task, not when the engine takes it")
class ReportsRunningWhenTheEngineTakesIt(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        return [] if isinstance(event, Started) else [event]

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        assert self._context is not None
        self._context.events.put([])
        channel: Any = self._context.events
        channel._channel.put([Started(task.uid, time.time()) for task in batch.tasks])
        super().rhapsody_submit(batch)


@mutant("test_states_and_times_only_go_forward", "give Outcome.started_at and ended_at by time.time()")
class ReportsTimesOfAnotherClock(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome):
            event.started_at, event.ended_at = time.monotonic(), time.monotonic()
        return [event]


@mutant("test_function_fails_with_its_exception", "must end FAILED; it ended DONE")
class SwallowsExceptions(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome) and event.exception is not None:
            event.state, event.exception = TaskState.DONE, None
        return [event]


@mutant("test_function_fails_with_its_exception", "report it as Outcome.exception")
class ReplacesExceptions(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome) and event.exception is not None:
            event.exception = RuntimeError(str(event.exception))
        return [event]


@mutant("test_result_belongs_to_its_task", "Match an Outcome to its task by uid")
class MixesUpTwoResults(Mutant):
    last: Any = None

    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome) and event.return_value in (500, 501):
            event.return_value = 1001 - event.return_value
        return [event]


@mutant("test_function_gets_arguments", "put the value of the frame")
class ForgetsResults(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome):
            event.return_value = None
        return [event]


@mutant("test_an_async_function_is_awaited", "which awaits what a coroutine function returns")
class DoesNotAwaitAsyncFunctions(Mutant):
    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        for task in batch.tasks:
            if asyncio.iscoroutinefunction(task.function):
                function = task.function
                self.change(task, function=lambda value, function=function: str(function(value).close()))
        super().rhapsody_submit(batch)


@mutant("test_large_data_travels_unharmed", "8 MiB of bytes came back changed")
class TruncatesLargeData(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome) and isinstance(event.return_value, bytes):
            event.return_value = event.return_value[: 2**20]
        return [event]


@mutant("test_a_task_that_fails_harms_no_other", "ended the other way")
class FailsAWholeBatchForOneTask(Mutant):
    broken = 0

    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome):
            if event.exception is not None:
                self.broken = 2
            elif self.broken:
                self.broken -= 1
                event.state, event.exception = TaskState.FAILED, RuntimeError("the batch failed")
        return [event]
