"""The part of the suite about limits of time: core keeps the time, and the backend stops what runs."""

from __future__ import annotations

from rhapsody.errors import TaskTimeoutError, UnsupportedError
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.testing import tasks
from rhapsody.testing._base import SuitePart, conforms
from rhapsody.testing.assertions import check, must_be, state_of
from rhapsody.testing.cancel import stands_still
from rhapsody.testing.ledger import ConformanceError
from rhapsody.testing.rig import Rig

__tracebackhide__ = True  # frames of the suite
_SHORT = 1.0  # seconds


class TimeoutTests(SuitePart):
    """A task that runs for longer than its timeout is stopped, or refused at submit."""

    @conforms("stops a running function", needs="functions cancel_functions")
    async def test_function_is_stopped_at_timeout(self, rig: Rig) -> None:
        """It fails with TaskTimeoutError, it runs no more, and its slot is free again."""
        with rig.gate() as gate:
            task = ComputeTask(function=tasks.beat, args=(str(gate.folder), "f"), timeout=_SHORT)
            await _times_out(rig, task, "function")
            heart = gate.folder / "f.beat"
            if heart.exists():
                await stands_still(rig, heart, "a function that was stopped at its timeout still runs")
        after = await rig.one(function=tasks.same, args=(1,))
        must_be(after, TaskState.DONE, "a task after another was stopped at its timeout")

    @conforms("stops a running executable", needs="executables cancel_executables")
    async def test_executable_is_stopped_at_timeout(self, rig: Rig) -> None:
        """It fails with TaskTimeoutError, and its slot is free again."""
        task = ComputeTask(executable="/bin/sh", arguments=["-c", "sleep 300"], timeout=_SHORT)
        await _times_out(rig, task, "executable")
        after = await rig.one(executable="/bin/sh", arguments=["-c", "true"])
        must_be(after, TaskState.DONE, "an executable after another was stopped at its timeout")

    @conforms("stops a running function", needs="functions", lacks="cancel_functions")
    async def test_function_timeout_is_refused(self, rig: Rig) -> None:
        """Where a running function cannot be stopped, UnsupportedError at submit."""
        await _is_refused(rig, ComputeTask(function=tasks.same, args=(1,), timeout=_SHORT), "function")

    @conforms("stops a running executable", needs="executables", lacks="cancel_executables")
    async def test_executable_timeout_is_refused(self, rig: Rig) -> None:
        """Where a running executable cannot be stopped, UnsupportedError at submit."""
        await _is_refused(rig, ComputeTask(executable="true", timeout=_SHORT), "executable")


async def _times_out(rig: Rig, task: ComputeTask, kind: str) -> None:
    life = await rig.shared()
    await rig.submit([task], life)
    await rig.until(
        lambda: task.is_final,
        lambda: (
            f"this {kind} with a timeout of {_SHORT:g} seconds is {task.state}, and was started at {task.started_at}; "
            f"the time begins with the Started that the backend reports as the task begins, and rhapsody_cancel must "
            f"then stop it"
        ),
    )
    check(
        isinstance(task.exception, TaskTimeoutError),
        f"a {kind} that ran for longer than its timeout must fail with TaskTimeoutError; {state_of(task)}. Report "
        f"Outcome(CANCELED) of what rhapsody_cancel has stopped",
    )


async def _is_refused(rig: Rig, task: ComputeTask, kind: str) -> None:
    try:
        await rig.submit([task])
    except UnsupportedError:
        return
    raise ConformanceError(f"the backend does not declare cancel_{kind}s, and took a task with a timeout")
