"""The part of the suite about capabilities: what is declared works, what is not declared is refused."""

from __future__ import annotations

from typing import Any

from rhapsody.errors import UnsupportedError
from rhapsody.model.resources import Resources
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.testing import tasks
from rhapsody.testing._base import SuitePart, conforms
from rhapsody.testing.assertions import check, must_be, state_of
from rhapsody.testing.ledger import ConformanceError
from rhapsody.testing.rig import Rig

__tracebackhide__ = True  # frames of the suite

_UNKNOWN = "no_backend_has_this_option"
_OVERTAKEN = 3  # rounds of other tasks, while one that asks for nonsense has not ended


class _Nonsense:
    """A value that no option can have."""

    def __repr__(self) -> str:
        return "<nonsense>"


class RefusalTests(SuitePart):
    """A backend honours an option or says that it cannot, and never ignores it."""

    @conforms("functions", lacks="functions")
    async def test_undeclared_functions_are_refused(self, rig: Rig) -> None:
        """UnsupportedError at submit."""
        await is_refused(rig, ComputeTask(function=tasks.same, args=(1,)), "a function")

    @conforms("executables", lacks="executables")
    async def test_undeclared_executables_are_refused(self, rig: Rig) -> None:
        """UnsupportedError at submit."""
        await is_refused(rig, ComputeTask(executable="true"), "an executable")

    @conforms("ranks", lacks="ranks")
    async def test_undeclared_ranks_are_refused(self, rig: Rig) -> None:
        """UnsupportedError at submit."""
        await is_refused(rig, _task(rig, resources=Resources(ranks=2)), "Resources(ranks=2)")

    @conforms("cores", lacks="cores_per_rank")
    async def test_undeclared_cores_are_refused(self, rig: Rig) -> None:
        """UnsupportedError at submit."""
        await is_refused(rig, _task(rig, resources=Resources(cores_per_rank=2)), "Resources(cores_per_rank=2)")

    @conforms("nodes", lacks="nodes")
    async def test_undeclared_nodes_are_refused(self, rig: Rig) -> None:
        """UnsupportedError at submit."""
        await is_refused(rig, _task(rig, resources=Resources(nodes=1)), "Resources(nodes=1)")

    @conforms("nodes", lacks="exclusive")
    async def test_undeclared_exclusive_is_refused(self, rig: Rig) -> None:
        """UnsupportedError at submit."""
        await is_refused(rig, _task(rig, resources=Resources(exclusive=True)), "Resources(exclusive=True)")

    @conforms("ranks", needs="ranks executables")
    async def test_declared_ranks_are_started(self, rig: Rig) -> None:
        """An executable of two ranks runs as two processes; or it is refused, since there is no MPI to start them."""
        book = rig.new_folder() / "book"
        script = ["-c", 'echo rank >> "$1"', "sh", str(book)]
        task = ComputeTask(executable="/bin/sh", arguments=script, resources=Resources(ranks=2))
        await _runs_or_is_refused(rig, task, "an executable of two ranks")
        if task.state is TaskState.NEW:
            return
        must_be(task, TaskState.DONE, "an executable of two ranks")
        ran = len(book.read_text().splitlines())
        check(ran == 2, f"the backend declares ranks, and an executable of 2 ranks ran {ran} times")

    @conforms("GPUs", lacks="gpus")
    async def test_undeclared_gpus_are_refused(self, rig: Rig) -> None:
        """UnsupportedError at submit."""
        await is_refused(rig, _task(rig, resources=Resources(gpus_per_rank=1)), "Resources(gpus_per_rank=1)")

    @conforms("GPUs", needs="gpus")
    async def test_declared_gpus_are_given(self, rig: Rig) -> None:
        """A task with a GPU ends DONE; or it is refused, since this machine has none."""
        await _runs_or_is_refused(rig, _task(rig, resources=Resources(gpus_per_rank=1)), "a task with one GPU")

    @conforms("memory", lacks="memory")
    async def test_undeclared_memory_is_refused(self, rig: Rig) -> None:
        """UnsupportedError at submit."""
        await is_refused(rig, _task(rig, resources=Resources(memory=2**20)), "Resources(memory=1 MiB)")

    @conforms("memory", needs="memory")
    async def test_declared_memory_is_given(self, rig: Rig) -> None:
        """A task with a mebibyte ends DONE; or it is refused, since the workers were given none to share out."""
        await _runs_or_is_refused(rig, _task(rig, resources=Resources(memory=2**20)), "a task with 1 MiB of memory")

    @conforms("unknown options are refused")
    async def test_unknown_option_is_refused(self, rig: Rig) -> None:
        """Nothing in `backend_options` is ignored."""
        task = _task(rig, backend_options={_UNKNOWN: 1})
        error = await is_refused(rig, task, f"backend_options={{{_UNKNOWN!r}: 1}}")
        check(_UNKNOWN in str(error), f"the error does not name the option {_UNKNOWN!r}: {error}")

    @conforms("options")
    async def test_declared_options_are_honoured(self, rig: Rig) -> None:
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
            nonsense = _task(rig, backend_options={key: _Nonsense()})
            await _is_not_ignored(rig, nonsense, f"{key}={nonsense.backend_options}, which means nothing", "options")

    @conforms("unknown options are refused")
    async def test_list_with_a_bad_task_is_refused(self, rig: Rig) -> None:
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


async def is_refused(rig: Rig, task: ComputeTask, about: str) -> UnsupportedError:
    """Have a task refused, as it must be. Returns the error."""
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


async def _is_not_ignored(rig: Rig, task: ComputeTask, about: str, capability: str) -> None:
    """Ask for what cannot be had: the task is refused, fails or waits; it is not DONE as if it had not asked."""
    life = await rig.shared()
    try:
        await life.session.submit_tasks([task])
    except UnsupportedError:
        return
    except Exception as error:
        check(False, f"{about}: it must be refused with UnsupportedError, not {type(error).__name__}: {error}")
    for _ in range(_OVERTAKEN):
        if not task.is_final:
            await rig.finish([_task(rig) for _ in range(2 * life.slots)], life)
    await rig.cancel([task], life)
    await rig.ended([task], life)
    check(
        task.state is not TaskState.DONE,
        f"a task asked for {about}, and ended DONE: the backend declares {capability}, and ignores it. Give it to the "
        f"engine, and refuse what cannot be had in rhapsody_validate",
    )


async def _runs_or_is_refused(rig: Rig, task: ComputeTask, about: str) -> None:
    try:
        await rig.finish([task])
    except UnsupportedError as error:
        check(rig.backend_name in str(error), f"{about} is refused by an error that does not name the backend: {error}")
    else:
        must_be(task, TaskState.DONE, about)
