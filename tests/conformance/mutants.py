"""Backends that are broken on purpose, each in one way, and the test of the suite that must catch it.

Run by `test_mutants.py` in one pytest of their own. `caught_by` names the test, `says` is what an author has to read in
its message to mend the backend.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.plugin import (
    BackendCapabilities,
    BackendContext,
    CancelResult,
    Capacity,
    ComputeTask,
    Deadlines,
    Event,
    Outcome,
    Returned,
    Started,
    TaskBatch,
    TaskState,
    hookimpl,
)
from rhapsody.testing import BackendConformanceTests, die

LEFT: list[Any] = []  # what mutants leave behind, kept from the garbage collector


class Tampered:
    """A channel that changes what goes through it."""

    def __init__(self, channel: Any, tamper: Callable[[Event], Sequence[Event]]) -> None:
        self._channel = channel
        self._tamper = tamper

    def put(self, events: Sequence[Event], soon: bool = True) -> None:
        self._channel.put([changed for event in events for changed in self._tamper(event)], soon)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


class Mutant(ConcurrentExecutionBackend):
    """The local backend, sound as long as `tamper` changes nothing."""

    executor = "threads"

    def __init__(self) -> None:
        super().__init__(executor=self.executor, max_workers=2)

    def tamper(self, event: Event) -> Sequence[Event]:
        return [event]

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        context.events = Tampered(context.events, self.tamper)  # type: ignore[assignment]
        await super().rhapsody_init(context)

    def change(self, task: ComputeTask, **fields: Any) -> ComputeTask:
        """Change what a task asks for, behind the user's back."""
        for name, value in fields.items():
            setattr(task, name, value)
        return task


MUTANTS: list[type[BackendConformanceTests]] = []


def mutant(caught_by: str, says: str, **settings: Any) -> Callable[[type[Mutant]], type[Mutant]]:
    """Make the suite for a mutant, of which `test_mutants.py` runs the one test."""

    def decorate(backend: type[Mutant]) -> type[Mutant]:
        def new_backend(cls: type) -> Callable[[], Mutant]:
            return backend

        body = {
            "new_backend": pytest.fixture(scope="class")(classmethod(new_backend)),
            "patience": 1.5,
            "caught_by": caught_by,
            "says": says,
            "__module__": __name__,
            **settings,
        }
        name = f"Test{backend.__name__}"
        globals()[name] = kind = type(name, (BackendConformanceTests,), body)
        MUTANTS.append(kind)
        return backend

    return decorate


# -- reports ---------------------------------------------------------------------------------------------------------


@mutant("test_ten_thousand_tasks_all_end_once", "has reported no Outcome")
class LosesOneEventInAThousand(Mutant):
    count = 0

    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome):
            self.count += 1
            if self.count % 1000 == 0:
                return []
        return [event]


@mutant("test_every_report_keeps_the_contract", "report exactly one Outcome for each task")
class ReportsTwice(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        return [event, event] if isinstance(event, Outcome) else [event]


@mutant("test_every_report_keeps_the_contract", "put Started into the channel before the task's Outcome")
class ReportsRunningAfterDone(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        return [event, Started(event.uid, time.time())] if isinstance(event, Outcome) else [event]


@mutant("test_every_report_keeps_the_contract", "Outcome(FAILED) of task")
class FailsWithoutSayingWhy(Mutant):
    count = 0

    def tamper(self, event: Event) -> Sequence[Event]:
        self.count += isinstance(event, Outcome)
        if isinstance(event, Outcome) and self.count == 100:
            event.state, event.exception = TaskState.FAILED, None
        return [event]


@mutant("test_running_means_that_a_worker_runs_it", "when a worker begins the task, not when the engine takes it")
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
class TellsTimesOfAnotherClock(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome):
            event.started_at, event.ended_at = time.monotonic(), time.monotonic()
        return [event]


# -- results ---------------------------------------------------------------------------------------------------------


@mutant("test_a_function_that_raises_fails_with_its_own_exception", "must end FAILED; it ended DONE")
class SwallowsExceptions(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome) and event.exception is not None:
            event.state, event.exception = TaskState.DONE, None
        return [event]


@mutant("test_a_function_that_raises_fails_with_its_own_exception", "report it as Outcome.exception")
class ReplacesExceptions(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome) and event.exception is not None:
            event.exception = RuntimeError(str(event.exception))
        return [event]


@mutant("test_every_result_belongs_to_its_own_task", "Match an Outcome to its task by uid")
class MixesUpTwoResults(Mutant):
    last: Any = None

    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome) and event.return_value in (500, 501):
            event.return_value = 1001 - event.return_value
        return [event]


@mutant("test_a_function_gets_its_arguments_and_its_result_comes_back", "put the value of the frame")
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


@mutant("test_large_arguments_and_results_travel_unharmed", "8 MiB of bytes came back changed")
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


@mutant("test_functions_run_where_the_backend_declares", "correct BackendCapabilities(remote=False)")
class DeclaresRemoteAndIsNot(Mutant):
    def __init__(self) -> None:
        super().__init__()
        self.capabilities = BackendCapabilities(remote=True, cancel_executables=True)


# -- executables -----------------------------------------------------------------------------------------------------


@mutant("test_an_executable_has_its_own_stdout_and_stderr", "set Outcome.stderr")
class DropsStderr(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome):
            event.stderr = None
        return [event]


@mutant("test_an_executable_has_its_own_stdout_and_stderr", "task.stdout is")
class StripsStdout(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome) and event.stdout:
            event.stdout = event.stdout.replace("\n", "")
        return [event]


@mutant("test_another_exit_code_than_0_is_a_failure", "an executable that returns 3 must end FAILED")
class TurnsAnotherExitCodeIntoDone(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome) and event.exit_code:
            event.state, event.exception = TaskState.DONE, None
        return [event]


@mutant("test_an_executable_that_a_signal_ends_tells_which", "it must be -9 (some engines report 137)")
class TellsSignalsAsAShellDoes(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome) and event.exit_code is not None and event.exit_code < 0:
            event.exit_code = 128 - event.exit_code
        return [event]


@mutant("test_arguments_arrive_as_they_are", "pass a list, use no shell")
class JoinsArgumentsWithSpaces(Mutant):
    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        for task in batch.tasks:
            self.change(task, arguments=" ".join(map(str, task.arguments)).split(" "))
        super().rhapsody_submit(batch)


@mutant("test_environment_and_folder_are_the_tasks_own", "the variables are added to the worker's own")
class IgnoresTheFolder(Mutant):
    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        for task in batch.tasks:
            self.change(task, cwd=None)
        super().rhapsody_submit(batch)


@mutant("test_an_executable_reads_its_stdin", "was given 'two\\nlines' as stdin")
class IgnoresStdin(Mutant):
    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        for task in batch.tasks:
            self.change(task, stdin=None)
        super().rhapsody_submit(batch)


@mutant("test_captured_output_goes_to_files_of_the_session", "though capture_stdio was asked for")
class IgnoresCaptureStdio(Mutant):
    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        for task in batch.tasks:
            self.change(task, capture_stdio=False)
        super().rhapsody_submit(batch)


# -- capabilities ----------------------------------------------------------------------------------------------------


@mutant("test_an_option_that_the_backend_does_not_know_is_refused", "raise UnsupportedError in rhapsody_validate")
class IgnoresUnknownOptions(Mutant):
    def __init__(self) -> None:
        super().__init__()
        self.capabilities = BackendCapabilities(remote=False, cancel_executables=True, options=None)


@mutant("test_declared_ranks_are_started", "an executable of 2 ranks ran 1 times")
class DeclaresRanksAndRunsOne(Mutant):
    def __init__(self) -> None:
        super().__init__()
        self.capabilities = BackendCapabilities(remote=False, cancel_executables=True, ranks=True)


@mutant("test_the_options_that_the_author_gives_are_honoured", "nice", options={"nice": 10})
class RefusesItsOwnOption(Mutant):
    pass


# -- cancel ----------------------------------------------------------------------------------------------------------


@mutant("test_a_running_function_is_stopped", "Stop it in rhapsody_cancel")
class IgnoresCancel(Mutant):
    executor = "processes"

    @hookimpl
    async def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        return {task.uid: CancelResult.CANNOT_STOP for task in tasks}


@mutant("test_a_running_executable_and_its_children_are_stopped", "still run, or their children do")
class SaysStoppedOfWhatRunsOn(Mutant):
    @hookimpl
    async def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        assert self._context is not None
        self._context.events.put([Outcome(task.uid, TaskState.CANCELED) for task in tasks])
        return {task.uid: CancelResult.STOPPED for task in tasks}


@mutant("test_a_cancel_whose_caller_gives_up_loses_no_task", "has reported no Outcome")
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


@mutant("test_what_is_said_of_a_canceled_waiting_task_is_true", "take it out of the queue")
class SaysNeverStartedOfWhatWillRun(Mutant):
    @hookimpl
    async def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        assert self._context is not None
        self._context.events.put([Outcome(task.uid, TaskState.CANCELED) for task in tasks])
        return {task.uid: CancelResult.NEVER_STARTED for task in tasks}


@mutant("test_cancel_in_the_middle_of_many_ends_each_task_once", "cancel what is asked for, and nothing else")
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


@mutant(
    "test_a_running_function_that_cannot_be_stopped_keeps_its_end", "declare it if it is so, else return CANNOT_STOP"
)
class StopsFunctionsWithoutDeclaringIt(Mutant):
    executor = "processes"

    def __init__(self) -> None:
        super().__init__()
        self.capabilities = BackendCapabilities(cancel_executables=True)


# -- the loss of workers ---------------------------------------------------------------------------------------------


@mutant(
    "test_a_dead_worker_costs_the_task_that_it_ran_and_no_other_runs_twice",
    "also where its worker or unit is lost",
    kill_worker=staticmethod(die),
)
class ForgetsWhatADeadWorkerHeld(Mutant):
    executor = "processes"

    def tamper(self, event: Event) -> Sequence[Event]:
        return [] if isinstance(event, Outcome) and type(event.exception).__name__ == "WorkerLostError" else [event]


@mutant(
    "test_a_dead_worker_costs_the_task_that_it_ran_and_no_other_runs_twice",
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


# -- life ------------------------------------------------------------------------------------------------------------


@mutant("test_making_a_backend_starts_nothing", "do that in rhapsody_init")
class StartsItsEngineWhenItIsMade(Mutant):
    def __init__(self) -> None:
        super().__init__()
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="early engine")
        self.pool.submit(os.getpid).result()


@mutant("test_the_backend_starts_and_says_its_capacity", "wait in it until the engine is ready")
class ReturnsFromInitTooEarly(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        async def begin() -> None:
            await asyncio.sleep(0.05)
            await ConcurrentExecutionBackend.rhapsody_init(self, context)

        LEFT.append(asyncio.ensure_future(begin()))


@mutant("test_no_hook_blocks_the_loop", "It stood here")
class BlocksTheLoopForASecond(Mutant):
    blocked = 0

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        if self.blocked < 3:
            self.blocked += 1
            time.sleep(1.0)
        super().rhapsody_submit(batch)


@mutant("test_leaving_one_session_in_the_middle_ends_its_tasks_and_harms_no_other", "share nothing with another")
class EndsEveryInstanceWithOne(Mutant):
    all: ClassVar[list[EndsEveryInstanceWithOne]] = []  # the fault itself

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        await super().rhapsody_init(context)
        self.all.append(self)
        self.kept = context

    @hookimpl
    async def rhapsody_submit(self, batch: TaskBatch) -> None:
        self.uids = [task.uid for task in batch.tasks]
        super().rhapsody_submit(batch)

    @hookimpl
    async def rhapsody_shutdown(self) -> None:
        for other in self.all:
            error = RuntimeError("the engine was shut down")
            lost: list[Event] = [Outcome(uid, TaskState.FAILED, exception=error) for uid in other.uids]
            other.kept.events.put(lost)
        await super().rhapsody_shutdown()


@mutant("test_a_backend_can_be_started_again", "rhapsody_init must begin anew")
class CannotBeStartedAgain(Mutant):
    used = False

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        if self.used:
            raise RuntimeError("the engine was shut down")
        self.used = True
        await super().rhapsody_init(context)


@mutant("test_an_interrupted_start_leaves_nothing", "is called after a failed rhapsody_init too")
class ForgetsAnInterruptedStart(Mutant):
    ready = False

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        self.engine = subprocess.Popen(["sleep", "60"])
        LEFT.append(self.engine)
        await asyncio.sleep(0.2)
        self.ready = True
        await super().rhapsody_init(context)

    @hookimpl
    async def rhapsody_shutdown(self) -> None:
        if self.ready:
            self.engine.kill()
            self.engine.wait()
        await super().rhapsody_shutdown()


@mutant("test_shutdown_ends_within_its_deadline", "bound every wait in rhapsody_shutdown")
class HangsInShutdown(Mutant):
    deadlines = Deadlines(shutdown=0.5)

    @hookimpl
    async def rhapsody_shutdown(self) -> None:
        await super().rhapsody_shutdown()
        await asyncio.sleep(3600)


@mutant("test_shutdown_raises_nothing", "the cluster does not answer")
class RaisesInShutdown(Mutant):
    @hookimpl
    async def rhapsody_shutdown(self) -> None:
        await super().rhapsody_shutdown()
        raise RuntimeError("the cluster does not answer")


@mutant("test_shutdown_may_be_called_again_and_without_init", "it must find nothing to do")
class CanBeShutDownOnce(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        await super().rhapsody_init(context)
        self.engine: object = object()

    @hookimpl
    async def rhapsody_shutdown(self) -> None:
        await super().rhapsody_shutdown()
        del self.engine


@mutant("test_no_process_is_left", "sleep 60")
class LeaksAProcess(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        LEFT.append(subprocess.Popen(["sleep", "60"]))
        await super().rhapsody_init(context)


@mutant("test_no_process_is_left", "sleep 61")
class LeaksAProcessThatHasLeftItsParents(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        subprocess.run(["/bin/sh", "-c", "setsid sleep 61 >/dev/null 2>&1 &"], check=True)
        await super().rhapsody_init(context)


@mutant("test_no_thread_is_left", "forgotten heartbeat")
class LeaksAThread(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        threading.Thread(target=time.sleep, args=(60,), name="forgotten heartbeat", daemon=True).start()
        await super().rhapsody_init(context)


@mutant("test_no_file_descriptor_is_left", "file descriptors open")
class LeaksADescriptor(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        LEFT.append(os.pipe())
        await super().rhapsody_init(context)


@mutant("test_no_file_is_left_outside_of_the_session", "belongs into context.sandbox")
class LeavesAFileInTheTemporaryFolder(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        Path(tempfile.mkdtemp(), "engine.log").write_text("started")
        await super().rhapsody_init(context)


@mutant("test_nothing_is_left_on_the_loop", "forgotten poll")
class LeavesATaskOnTheLoop(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        LEFT.append(asyncio.create_task(asyncio.sleep(60), name="forgotten poll"))
        await super().rhapsody_init(context)


@mutant("test_nothing_is_printed", "engine is ready")
class PrintsAGreeting(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        print("engine is ready", file=sys.stderr)  # noqa: T201  # the fault itself
        await super().rhapsody_init(context)


@mutant("test_nothing_is_printed", "banner of a worker")
class LetsItsEnginePrint(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        subprocess.run(["/bin/sh", "-c", "echo banner of a worker"], check=True)
        await super().rhapsody_init(context)


@mutant("test_tasks_of_several_submitters_all_end", "Room comes back")
class LosesItsCapacity(Mutant):
    taken = 0

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        assert self._context is not None
        self.taken += len(batch)
        if self.taken > 30:
            self._context.set_capacity(Capacity(slots=0))
        super().rhapsody_submit(batch)
