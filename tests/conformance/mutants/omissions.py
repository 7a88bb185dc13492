"""Mutants that leave out what a user counts on: exact loss, options, capacity, times, the worker's surroundings."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import attrs
from rhapsody.errors import WorkerLostError
from rhapsody.plugin import (
    EXECUTABLE,
    BackendContext,
    CancelResult,
    Capacity,
    ComputeTask,
    Deadlines,
    Event,
    Outcome,
    Returned,
    SharedStore,
    Started,
    TaskBatch,
    TaskState,
    hookimpl,
)
from rhapsody.testing import die

from .base import LEFT, Mutant, mutant


@mutant("test_worker_loss_costs_one_task", "only what ran at that moment may be lost", kill_worker=staticmethod(die))
class FailsTheWholeBatchOfADeadWorker(Mutant):
    executor = "processes"

    def tamper(self, event: Event) -> Sequence[Event]:
        if not isinstance(event, Returned):
            return [event]
        return [Outcome(uid, TaskState.FAILED, exception=WorkerLostError(f"task {uid}: gone")) for uid in event.uids]


class _WithEngine(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        self.engine = subprocess.Popen(["sleep", "60"])
        await super().rhapsody_init(context)

    @hookimpl
    async def rhapsody_shutdown(self) -> None:
        await super().rhapsody_shutdown()
        self.end()

    def end(self) -> None:
        self.engine.kill()
        self.engine.wait()


@mutant("test_engine_loss_is_reported", "the backend reports nothing of it", kill_engine=staticmethod(_WithEngine.end))
class DoesNotReportTheLossOfItsEngine(_WithEngine):
    pass


@mutant("test_a_large_argument_travels_once", "set context.store in rhapsody_init")
class StoresNoLargeArguments(Mutant):
    executor = "processes"

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        await super().rhapsody_init(context)
        context.store = None


class _Forgets(SharedStore):
    """Takes every handle for another one."""

    def store(self, values: Any, batch: TaskBatch) -> dict[int, Any]:
        return {}

    def reduce(self, batch: TaskBatch, handle: Any, as_value: bool) -> tuple[Any, ...]:
        return (str, ("another",))


@mutant("test_handles_arrive_as_values", "a handle of session.share arrived as")
class MixesHandlesUp(Mutant):
    executor = "processes"

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        await super().rhapsody_init(context)
        context.store = _Forgets()


@mutant("test_large_arguments_are_copies", "what others have written into a large argument")
class GivesTasksOneCopy(Mutant):
    """A backend of threads that declares itself remote."""

    def __init__(self) -> None:
        super().__init__()
        self.capabilities = attrs.evolve(self.capabilities, remote=True)


class _Declares(Mutant):
    """Declares something, and takes it off the tasks."""

    declares: dict[str, Any]

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        await super().rhapsody_init(context)
        context.set_capacity(Capacity(2))  # nothing that core could share out

    def __init__(self) -> None:
        super().__init__()
        self.capabilities = attrs.evolve(self.capabilities, **self.declares)

    @hookimpl
    def rhapsody_validate(self, tasks: Sequence[ComputeTask]) -> None:
        pass

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        for task in batch.tasks:
            self.change(task, resources=None, backend_options=None)
        super().rhapsody_submit(batch)


@mutant("test_too_much_memory_is_refused", "refuse in rhapsody_validate what the engine")
class IgnoresMemory(_Declares):
    declares = {"memory": True}  # noqa: RUF012  # never changed


@mutant("test_too_many_gpus_are_refused", "refuse in rhapsody_validate what the engine")
class IgnoresGpus(_Declares):
    declares = {"gpus": True}  # noqa: RUF012  # never changed


@mutant("test_declared_options_are_honoured", "declares options, and ignores it", options={"nice": 3})
class IgnoresAnOption(_Declares):
    declares = {"options": {"nice"}}  # noqa: RUF012  # never changed


@mutant("test_running_means_a_worker_runs_it", "say in set_capacity how many it runs")
class SaysMoreSlotsThanItHas(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        await super().rhapsody_init(context)
        context.set_capacity(Capacity(6))


@mutant("test_running_means_a_worker_runs_it", "says Capacity(slots=1)", slots=2)
class SaysFewerSlotsThanItHas(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        await super().rhapsody_init(context)
        context.set_capacity(Capacity(1))


@mutant("test_running_means_a_worker_runs_it", "none of them is RUNNING")
class NeverReportsAStart(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        return [] if isinstance(event, Started) else [event]


@mutant("test_states_and_times_only_go_forward", "is DONE without started_at, ran_on")
class GivesNoTimes(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome):
            event.started_at = event.ended_at = event.ran_on = None
        return [] if isinstance(event, Started) else [event]


@mutant("test_function_of_a_batch_is_stopped", "give what waits behind it back by Returned")
class CannotStopInASharedBatch(Mutant):
    executor = "processes"

    def __init__(self) -> None:
        super().__init__()
        self.sharing: set[str] = set()

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        if len(batch) > 1:
            self.sharing.update(task.uid for task in batch.tasks)
        super().rhapsody_submit(batch)

    @hookimpl
    async def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        return await super().rhapsody_cancel([task for task in tasks if task.uid not in self.sharing])


@mutant("test_no_hook_blocks_the_loop", "It stood here")
class BlocksTheLoopForEachExecutable(Mutant):
    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        if any(task.kind is EXECUTABLE for task in batch.tasks):
            time.sleep(0.5)
        super().rhapsody_submit(batch)


@mutant("test_shutdown_ends_within_its_deadline", "what is idle is shut down at once", shutdown_seconds=0.2)
class TakesLongToShutDown(Mutant):
    @hookimpl
    async def rhapsody_shutdown(self) -> None:
        await super().rhapsody_shutdown()
        await asyncio.sleep(1.5)


class _Wraps(Mutant):
    """Changes how executables are run."""

    def wrap(self, task: ComputeTask) -> None:
        raise NotImplementedError

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        for task in batch.tasks:
            if task.kind is EXECUTABLE:
                self.wrap(task)
        super().rhapsody_submit(batch)


@mutant("test_environment_stays_with_its_task", "its variables are added to the worker's own")
class EmptiesTheEnvironment(_Wraps):
    def wrap(self, task: ComputeTask) -> None:
        own = [f"{name}={value}" for name, value in (task.environment or {}).items()]
        self.change(task, executable="/usr/bin/env", arguments=["-i", *own, task.executable, *task.arguments])


@mutant("test_environment_stays_with_its_task", "in the folder of the task before it")
class StaysInTheFolderOfATask(_Wraps):
    def wrap(self, task: ComputeTask) -> None:
        if task.cwd is not None:
            os.chdir(task.cwd)

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        self.home = Path.cwd()
        await super().rhapsody_init(context)

    @hookimpl
    async def rhapsody_shutdown(self) -> None:
        await super().rhapsody_shutdown()
        os.chdir(self.home)


@mutant("test_no_process_is_left", "context.guard ends what it marks")
class LeavesChildrenInTheBackground(_Wraps):
    def wrap(self, task: ComputeTask) -> None:
        hidden = "env -u RHAPSODY_GUARD setsid sleep 300"
        self.change(task, arguments=[str(part).replace("setsid sleep 300", hidden) for part in task.arguments])


@mutant("test_killed_program_leaves_nothing", "sleep 600", patience=15.0)
class LeavesExecutablesWhenKilled(_Wraps):
    def wrap(self, task: ComputeTask) -> None:
        hidden = ["-u", "RHAPSODY_GUARD", "setsid", "--wait", task.executable, *task.arguments]
        self.change(task, executable="/usr/bin/env", arguments=hidden)


@mutant("test_running_function_is_stopped", "and no Outcome(CANCELED) followed")
class SaysStoppedAndStopsNothing(Mutant):
    executor = "processes"
    deadlines = Deadlines(cancel=0.3)

    @hookimpl
    async def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        return {task.uid: CancelResult.STOPPED for task in tasks}


@mutant("test_output_belongs_to_its_executable", "rhapsody_submit did not take a batch")
class RaisesInSubmit(_Wraps):
    def wrap(self, task: ComputeTask) -> None:
        raise OSError("the queue is full")


@mutant("test_result_belongs_to_its_task", "its monitor raised KeyError")
class LosesItsMonitor(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        return [] if isinstance(event, Outcome) else [event]

    @hookimpl
    async def rhapsody_monitor(self) -> AsyncIterator[list[Event]]:
        while LEFT is not None:
            await asyncio.sleep(0.05)
            raise KeyError("a message of another version")
        yield []
