"""The part of the suite about capabilities: what is declared works, what is not declared is refused."""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedError
from ..states import TaskState
from ..task import ComputeTask, Resources
from . import tasks
from ._base import SuitePart, conforms
from .ledger import ConformanceError
from .rig import Rig, check, must_be, state_of

_UNKNOWN = "no_backend_has_this_option"


class RefusalTests(SuitePart):
    """A backend honours an option or says that it cannot, and never ignores it."""

    @conforms("functions", lacks="functions")
    async def test_functions_that_are_not_declared_are_refused(self, rig: Rig) -> None:
        """UnsupportedError at submit."""
        await _is_refused(rig, ComputeTask(function=tasks.same, args=(1,)), "a function")

    @conforms("executables", lacks="executables")
    async def test_executables_that_are_not_declared_are_refused(self, rig: Rig) -> None:
        """UnsupportedError at submit."""
        await _is_refused(rig, ComputeTask(executable="true"), "an executable")

    @conforms("ranks", lacks="ranks")
    async def test_ranks_that_are_not_declared_are_refused(self, rig: Rig) -> None:
        """UnsupportedError at submit."""
        await _is_refused(rig, _task(rig, resources=Resources(ranks=2)), "Resources(ranks=2)")
        await _is_refused(rig, _task(rig, resources=Resources(cores_per_rank=2)), "Resources(cores_per_rank=2)")

    @conforms("ranks", needs="ranks executables")
    async def test_declared_ranks_are_started(self, rig: Rig) -> None:
        """An executable of two ranks runs as two processes."""
        book = rig.new_folder() / "book"
        task = await rig.one(
            executable="/bin/sh",
            arguments=["-c", 'echo rank >> "$1"', "sh", str(book)],
            resources=Resources(ranks=2),
        )
        must_be(task, TaskState.DONE, "an executable of two ranks")
        ran = len(book.read_text().splitlines())
        check(ran == 2, f"the backend declares ranks, and an executable of 2 ranks ran {ran} times")

    @conforms("GPUs", lacks="gpus")
    async def test_gpus_that_are_not_declared_are_refused(self, rig: Rig) -> None:
        """UnsupportedError at submit."""
        await _is_refused(rig, _task(rig, resources=Resources(gpus_per_rank=1)), "Resources(gpus_per_rank=1)")

    @conforms("GPUs", needs="gpus")
    async def test_declared_gpus_are_given_or_refused_where_there_are_none(self, rig: Rig) -> None:
        """A task with a GPU ends DONE; or it is refused, since this machine has none."""
        await _runs_or_is_refused(rig, _task(rig, resources=Resources(gpus_per_rank=1)), "a task with one GPU")

    @conforms("memory", lacks="memory")
    async def test_memory_that_is_not_declared_is_refused(self, rig: Rig) -> None:
        """UnsupportedError at submit."""
        await _is_refused(rig, _task(rig, resources=Resources(memory=2**20)), "Resources(memory=1 MiB)")

    @conforms("memory", needs="memory")
    async def test_declared_memory_is_given_or_refused_where_there_is_none(self, rig: Rig) -> None:
        """A task with a mebibyte ends DONE; or it is refused, since the workers were given none to share out."""
        await _runs_or_is_refused(rig, _task(rig, resources=Resources(memory=2**20)), "a task with 1 MiB of memory")

    @conforms("unknown options are refused")
    async def test_an_option_that_the_backend_does_not_know_is_refused(self, rig: Rig) -> None:
        """Nothing in `backend_options` is ignored."""
        task = _task(rig, backend_options={_UNKNOWN: 1})
        error = await _is_refused(rig, task, f"backend_options={{{_UNKNOWN!r}: 1}}")
        check(_UNKNOWN in str(error), f"the error does not name the option {_UNKNOWN!r}: {error}")

    @conforms("options")
    async def test_the_options_that_the_author_gives_are_honoured(self, rig: Rig) -> None:
        """Every option of the class attribute `options` is taken, by itself and with the others."""
        for key, value in self.options.items():
            task = _task(rig, backend_options={key: value})
            try:
                await rig.finish([task])
            except UnsupportedError as error:
                raise ConformanceError(
                    f"the option {key}={value!r} is one of the backend's, and is refused: {error}"
                ) from error
            must_be(task, TaskState.DONE, f"a task with backend_options={{{key!r}: {value!r}}}")

    @conforms("unknown options are refused")
    async def test_a_list_with_one_bad_task_is_refused_whole(self, rig: Rig) -> None:
        """The good tasks in it stay NEW, and can be submitted again."""
        good = [_task(rig), _task(rig)]
        life = await rig.shared()
        try:
            await life.session.submit_tasks([good[0], _task(rig, backend_options={_UNKNOWN: 1}), good[1]])
        except UnsupportedError:
            pass
        else:
            check(False, "a list of three tasks, one with an unknown option, was accepted")
        check(all(task.state is TaskState.NEW for task in good), "tasks of a refused list were accepted")
        await rig.finish(good)
        for task in good:
            must_be(task, TaskState.DONE, "a task that is submitted again after its list was refused")


def _task(rig: Rig, **fields: Any) -> ComputeTask:
    if rig.capabilities.functions:
        return ComputeTask(function=tasks.same, args=(1,), **fields)
    return ComputeTask(executable="/bin/sh", arguments=["-c", "true"], **fields)


async def _is_refused(rig: Rig, task: ComputeTask, about: str) -> UnsupportedError:
    life = await rig.shared()
    try:
        await life.session.submit_tasks([task])
    except UnsupportedError as error:
        for name in (task.uid, rig.backend_name):
            check(name in str(error), f"{about} is refused by an error that does not name {name!r}: {error}")
        check(task.state is TaskState.NEW, f"{about} is refused, and the task is {task.state}")
        return error
    except Exception as error:
        check(False, f"{about} must be refused with UnsupportedError, not {type(error).__name__}: {error}")
    await rig.ended([task], life)
    raise ConformanceError(
        f"{about} is not declared, and was accepted and ended {state_of(task)}; raise UnsupportedError in "
        f"rhapsody_validate, or let core do it: BackendCapabilities(options=frozenset({{...}}))"
    )


async def _runs_or_is_refused(rig: Rig, task: ComputeTask, about: str) -> None:
    try:
        await rig.finish([task])
    except UnsupportedError as error:
        check(rig.backend_name in str(error), f"{about} is refused by an error that does not name the backend: {error}")
    else:
        must_be(task, TaskState.DONE, about)
