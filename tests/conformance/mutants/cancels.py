"""Mutants that cancel wrongly, or lose what a dead worker held."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rhapsody.plugin import (
    BackendCapabilities,
    CancelResult,
    ComputeTask,
    Event,
    Outcome,
    Returned,
    Started,
    TaskBatch,
    TaskState,
    hookimpl,
)
from rhapsody.testing import die

from .base import Mutant, mutant


@mutant("test_running_function_is_stopped", "Stop it in rhapsody_cancel")
class IgnoresCancel(Mutant):
    executor = "processes"

    @hookimpl
    async def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        return {task.uid: CancelResult.CANNOT_STOP for task in tasks}


@mutant("test_running_executable_is_stopped", "still run, or their children do")
class SaysStoppedOfWhatRunsOn(Mutant):
    @hookimpl
    async def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        assert self._context is not None
        self._context.events.put([Outcome(task.uid, TaskState.CANCELED) for task in tasks])
        return {task.uid: CancelResult.STOPPED for task in tasks}


@mutant("test_abandoned_cancel_loses_no_task", "has reported no Outcome")
class ReportsWhatItStoppedOnlyWhenItReturns(Mutant):
    executor = "processes"

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Event] = []

    def tamper(self, event: Event) -> Sequence[Event]:
        if not isinstance(event, Outcome) or event.state is not TaskState.CANCELED:
            return [event]
        self.kept.append(event)
        return []

    @hookimpl
    async def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        assert self._context is not None
        results = await super().rhapsody_cancel(tasks)
        await asyncio.sleep(0.2)
        kept, self.kept = self.kept, []
        self._context.events._channel.put(kept)  # type: ignore[attr-defined]
        return results


@mutant("test_cancel_answer_is_true", "take it out of the queue")
class SaysNeverStartedOfWhatWillRun(Mutant):
    @hookimpl
    async def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        assert self._context is not None
        self._context.events.put([Outcome(task.uid, TaskState.CANCELED) for task in tasks])
        return {task.uid: CancelResult.NEVER_STARTED for task in tasks}


@mutant("test_cancel_ends_each_task_once", "cancel what is asked for, and nothing else")
class CancelsNeighboursToo(Mutant):
    held: list[ComputeTask]

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        self.held = list(batch.tasks)
        super().rhapsody_submit(batch)

    @hookimpl
    async def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        assert self._context is not None
        results = await super().rhapsody_cancel(tasks)
        self._context.events.put([Outcome(task.uid, TaskState.CANCELED) for task in self.held[-50:]])
        return results


@mutant("test_unstoppable_function_goes_on", "declare it if it is so, else return CANNOT_STOP")
class StopsFunctionsWithoutDeclaringIt(Mutant):
    executor = "processes"

    def __init__(self) -> None:
        super().__init__()
        self.capabilities = BackendCapabilities(cancel_executables=True)


@mutant(
    "test_worker_loss_costs_one_task",
    "also where its worker or batch is lost",
    kill_worker=staticmethod(die),
)
class ForgetsWhatADeadWorkerHeld(Mutant):
    executor = "processes"

    def tamper(self, event: Event) -> Sequence[Event]:
        return [] if isinstance(event, Outcome) and type(event.exception).__name__ == "WorkerLostError" else [event]


@mutant(
    "test_worker_loss_costs_one_task",
    "it must never run twice",
    kill_worker=staticmethod(die),
)
class RunsAgainWhatWasDoneWhenAWorkerDied(Mutant):
    executor = "processes"

    def __init__(self) -> None:
        super().__init__()
        self.lost = False

    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome) and type(event.exception).__name__ == "WorkerLostError":
            self.lost = True
        elif self.lost and isinstance(event, Outcome) and str(event.return_value).startswith("t"):
            self.lost = False
            return [Returned([event.uid])]
        return [] if isinstance(event, Started) else [event]
