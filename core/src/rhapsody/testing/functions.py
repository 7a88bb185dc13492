"""The part of the suite about function tasks."""

from __future__ import annotations

import os
import threading

from rhapsody.errors import SerializationError, TaskError
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.testing import tasks
from rhapsody.testing._base import SuitePart, conforms
from rhapsody.testing.assertions import check, must_be, state_of
from rhapsody.testing.rig import Rig

__tracebackhide__ = True  # frames of the suite

_LARGE = 8 * 2**20  # bytes


class FunctionTests(SuitePart):
    """What holds for Python functions on every backend that runs them."""

    @conforms("functions", needs="functions")
    async def test_function_gets_arguments(self, rig: Rig) -> None:
        """Positional and keyword arguments go there, the value comes back."""
        task = await rig.one(function=tasks.echo, args=(1, "two"), kwargs={"three": [3.0, None]})
        must_be(task, TaskState.DONE, "a function that returns")
        wanted = ((1, "two"), {"three": [3.0, None]})
        check(
            task.return_value == wanted,
            f"the function returned {wanted!r}, and the task's return_value is {task.return_value!r}; put the value of "
            f"the frame (TaskBatch.decode) into Outcome.return_value",
        )

    @conforms("functions", needs="functions")
    async def test_local_function_runs(self, rig: Rig) -> None:
        """Lambdas and closures travel by value; TaskBatch.encode does that."""
        factor = 6
        task = await rig.one(function=lambda number: factor * number, args=(7,))
        must_be(task, TaskState.DONE, "a lambda that returns")
        check(task.return_value == 42, f"6 * 7 came back as {task.return_value!r}")

    @conforms("async functions", needs="functions")
    async def test_an_async_function_is_awaited(self, rig: Rig) -> None:
        """A coroutine function runs on a loop of the worker."""
        task = await rig.one(function=tasks.same_later, args=("later",))
        must_be(task, TaskState.DONE, "an async function that returns")
        check(
            task.return_value == "later",
            f"an async function's result came back as {task.return_value!r}; run functions by "
            f"rhapsody.worker.run_batch, which awaits what a coroutine function returns",
        )

    @conforms("exceptions", needs="functions")
    async def test_function_fails_with_its_exception(self, rig: Rig) -> None:
        """Type, message and attributes of the exception arrive."""
        task = await rig.one(function=tasks.fail, args=("it broke", 7))
        must_be(task, TaskState.FAILED, "a function that raises")
        error = task.exception
        check(
            isinstance(error, tasks.OwnError) and error.args == ("it broke", 7) and error.number == 7,
            f"the function raised OwnError('it broke', 7), and the task's exception is {error!r}; report it as "
            f"Outcome.exception, as TaskBatch.decode gives it",
        )

    @conforms("exceptions", needs="functions")
    async def test_an_exception_keeps_what_led_to_it(self, rig: Rig) -> None:
        """`raise A from B` comes with B, and with its notes; an exception of many arguments is caught by its class."""
        task = await rig.one(function=tasks.fail_from, args=("it broke", 7))
        must_be(task, TaskState.FAILED, "a function that raises from another exception")
        error = task.exception
        check(
            isinstance(error, tasks.WordyError) and (str(error), error.number) == ("it broke (7)", 7),
            f"the function raised WordyError, which says 'it broke (7)', and the task's exception is {error!r}",
        )
        notes, cause = getattr(error, "__notes__", []), getattr(error, "__cause__", None)
        check("a note" in notes, f"the exception was given a note, and its notes are {notes}")
        check(
            isinstance(cause, tasks.OwnError) and cause.number == 7,
            f"the function raised from OwnError('it broke', 7), and the cause of the task's exception is {cause!r}; "
            f"report the exception as TaskBatch.decode gives it",
        )

    @conforms("exceptions", needs="functions")
    async def test_exiting_function_fails_alone(self, rig: Rig) -> None:
        """SystemExit ends the task and neither the worker nor its neighbours."""
        first = ComputeTask(function=tasks.leave, args=(3,))
        others = [ComputeTask(function=tasks.same, args=(number,)) for number in range(8)]
        await rig.finish([first, *others])
        must_be(first, TaskState.FAILED, "a function that calls sys.exit(3)")
        code = getattr(first.exception, "exit_code", None)
        check(code == 3, f"a function called sys.exit(3), and the exit_code of the task's exception is {code}")
        for task in others:
            must_be(task, TaskState.DONE, "a task submitted beside one that calls sys.exit")

    @conforms("exceptions", needs="functions")
    async def test_a_task_that_fails_harms_no_other(self, rig: Rig) -> None:
        """Of tasks that fail and succeed in turns, exactly the right ones fail."""
        batch = [
            ComputeTask(function=tasks.fail, args=("odd", number))
            if number % 2
            else ComputeTask(function=tasks.same, args=(number,))
            for number in range(min(100, self.many))
        ]
        await rig.finish(batch)
        wrong = [
            number for number, task in enumerate(batch) if (task.state is TaskState.FAILED) is not bool(number % 2)
        ]
        check(
            not wrong,
            f"every second of {len(batch)} tasks raises; {len(wrong)} ended the other way, the first is number "
            f"{wrong[:1]}, which ended {state_of(batch[wrong[0]]) if wrong else ''}",
        )

    @conforms("functions", needs="functions")
    async def test_result_belongs_to_its_task(self, rig: Rig) -> None:
        """A thousand tasks return their own numbers."""
        batch = [ComputeTask(function=tasks.same, args=(number,)) for number in range(min(1000, self.many))]
        await rig.finish(batch)
        wrong = [number for number, task in enumerate(batch) if task.return_value != number]
        check(
            not wrong,
            f"{len(wrong)} of {len(batch)} tasks have another's result; task number {wrong[0] if wrong else ''} has "
            f"{batch[wrong[0]].return_value if wrong else ''}. Match an Outcome to its task by uid, never by the order "
            f"in which results arrive",
        )

    @conforms("large data", needs="functions")
    async def test_large_data_travels_unharmed(self, rig: Rig) -> None:
        """Eight mebibytes there, and eight back."""
        data = os.urandom(2**20) * (_LARGE // 2**20)
        task = await rig.one(function=tasks.same, args=(data,))
        must_be(task, TaskState.DONE, "a function that is given 8 MiB and returns them")
        check(task.return_value == data, "8 MiB of bytes came back changed")

    @conforms("unpicklable data", needs="functions remote")
    async def test_unpicklable_argument_fails_alone(self, rig: Rig) -> None:
        """The task fails with SerializationError, its neighbours do not."""
        bad = ComputeTask(function=tasks.same, args=(threading.Lock(),))
        good = [ComputeTask(function=tasks.same, args=(number,)) for number in range(4)]
        await rig.finish([*good[:2], bad, *good[2:]])
        _fails_with_serialization_error(bad, "a task whose arguments hold a lock")
        for task in good:
            must_be(task, TaskState.DONE, "a task beside one whose arguments cannot be pickled")

    @conforms("unpicklable data", needs="functions remote")
    async def test_unpicklable_result_fails_alone(self, rig: Rig) -> None:
        """The task fails with SerializationError, which has the original's name; its neighbours do not."""
        result, error = ComputeTask(function=tasks.return_a_lock), ComputeTask(function=tasks.raise_a_lock)
        good = [ComputeTask(function=tasks.same, args=(number,)) for number in range(4)]
        await rig.finish([*good[:2], result, error, *good[2:]])
        _fails_with_serialization_error(result, "a task whose result is a lock")
        _fails_with_serialization_error(error, "a task whose exception holds a lock")
        check("ClosedError" in str(error.exception), f"the original type ClosedError is not named in {error.exception}")
        for task in good:
            must_be(task, TaskState.DONE, "a task beside one whose result cannot be pickled")

    @conforms("functions", needs="functions")
    async def test_functions_run_where_declared(self, rig: Rig) -> None:
        """`remote` is whether functions run in another process than the user's."""
        task = await rig.one(function=tasks.process)
        must_be(task, TaskState.DONE, "os.getpid()")
        remote = task.return_value != os.getpid()
        check(
            remote == rig.capabilities.remote,
            f"the backend declares remote={rig.capabilities.remote}, and its functions run in "
            f"{'another' if remote else 'the same'} process; correct BackendCapabilities(remote={remote})",
        )


def _fails_with_serialization_error(task: ComputeTask, about: str) -> None:
    must_be(task, TaskState.FAILED, about)
    check(
        isinstance(task.exception, SerializationError),
        f"{about} must fail with SerializationError, not {type(task.exception).__name__}: {task.exception}; "
        f"TaskBatch.encode, run_batch and TaskBatch.decode see to it",
    )
    assert isinstance(task.exception, TaskError)
