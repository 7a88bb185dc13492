"""Mutants that ignore or change what a task asks for."""

from __future__ import annotations

from collections.abc import Sequence

from rhapsody.plugin import (
    BackendCapabilities,
    BackendContext,
    Backlog,
    Capacity,
    ComputeTask,
    Event,
    Outcome,
    TaskBatch,
    TaskState,
    hookimpl,
)

from .base import Mutant, mutant


@mutant("test_functions_run_where_declared", "correct BackendCapabilities(remote=False)")
class DeclaresRemoteAndIsNot(Mutant):
    def __init__(self) -> None:
        super().__init__()
        self.capabilities = BackendCapabilities(remote=True, cancel_executables=True)


@mutant("test_executable_has_both_streams", "set Outcome.stderr")
class DropsStderr(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome):
            event.stderr = None
        return [event]


@mutant("test_prints_are_kept_with_their_task", "a function with capture_stdio printed")
class ForgetsPrints(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome) and event.exit_code is None:
            event.stdout = event.stderr = None
        return [event]


@mutant("test_streams_may_be_files", "use stdin_path, stdout_path and stderr_path")
class ForgetsWhereStreamsWent(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome):
            event.stdout_path = None
        return [event]


@mutant("test_executable_has_both_streams", "task.stdout is")
class StripsStdout(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome) and event.stdout:
            event.stdout = event.stdout.replace("\n", "")
        return [event]


@mutant("test_other_exit_code_is_a_failure", "an executable that returns 3 must end FAILED")
class TurnsAnotherExitCodeIntoDone(Mutant):
    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome) and event.exit_code:
            event.state, event.exception = TaskState.DONE, None
        return [event]


@mutant("test_signal_is_a_negative_exit_code", "it must be -9 (some engines report 137)")
class ReportsSignalsAsAShellDoes(Mutant):
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


@mutant("test_executable_has_its_environment", "the variables are added to the worker's own")
class IgnoresTheFolder(Mutant):
    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        for task in batch.tasks:
            self.change(task, cwd=None)
        super().rhapsody_submit(batch)


@mutant("test_leftovers_end_with_executable", "the child that it left in the background runs on", patience=1.0)
class LetsChildrenLeaveTheGroup(Mutant):
    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        for task in batch.tasks:
            left = "setsid sleep 300 & sleep 0.3; "  # until it has left the group
            self.change(task, arguments=[str(each).replace("sleep 300 & ", left) for each in task.arguments])
        super().rhapsody_submit(batch)


@mutant("test_an_executable_reads_its_stdin", "was given 'two\\nlines' as stdin")
class IgnoresStdin(Mutant):
    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        for task in batch.tasks:
            self.change(task, stdin=None)
        super().rhapsody_submit(batch)


@mutant("test_captured_output_is_in_the_session", "though capture_stdio was asked for")
class IgnoresCaptureStdio(Mutant):
    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        for task in batch.tasks:
            self.change(task, capture_stdio=False)
        super().rhapsody_submit(batch)


@mutant("test_unknown_option_is_refused", "raise UnsupportedError in rhapsody_validate")
class IgnoresUnknownOptions(Mutant):
    def __init__(self) -> None:
        super().__init__()
        self.capabilities = BackendCapabilities(remote=False, cancel_executables=True, options=None)


class IgnoresResources(Mutant):
    """Declares everything, and runs each task as if it had asked for nothing."""

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        self.__dict__["_capacity"] = Capacity(2, tasks=8)
        await super().rhapsody_init(context)

    @hookimpl
    def rhapsody_validate(self, tasks: Sequence[ComputeTask]) -> None:
        pass

    @hookimpl
    def rhapsody_batch(self, backlog: Backlog) -> Sequence[ComputeTask]:
        return backlog.take(2)

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        for task in batch.tasks:
            self.change(task, resources=None)
        super().rhapsody_submit(batch)


@mutant("test_declared_ranks_are_started", "an executable of 2 ranks ran 1 times")
class DeclaresRanksAndRunsOne(IgnoresResources):
    pass


@mutant("test_too_many_cores_are_refused", "declares cores_per_rank and accepts")
class DeclaresCoresAndIgnoresThem(IgnoresResources):
    pass


@mutant("test_too_many_gpus_are_refused", "declares gpus and accepts")
class DeclaresGpusAndIgnoresThem(IgnoresResources):
    pass


@mutant("test_too_much_memory_is_refused", "declares memory and accepts")
class DeclaresMemoryAndIgnoresIt(IgnoresResources):
    pass


@mutant("test_cores_are_not_given_twice", "tasks of 2 cores ran at the same time on an engine of 2 cores")
class GivesCoresTwice(IgnoresResources):
    pass


@mutant("test_gpus_are_not_given_twice", "each must have one of its own")
class GivesEachTaskTheFirstGpu(Mutant):
    gpus = 2

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        batch.gpus = dict.fromkeys(batch.gpus, (0,))
        super().rhapsody_submit(batch)


@mutant("test_exclusive_task_runs_alone", "ran beside another")
class IgnoresExclusive(Mutant):
    @hookimpl
    def rhapsody_validate(self, tasks: Sequence[ComputeTask]) -> None:
        for task in tasks:
            self.change(task, resources=None)


@mutant("test_declared_options_are_honoured", "nice", options={"nice": 10})
class RefusesItsOwnOption(Mutant):
    pass
