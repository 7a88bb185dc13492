"""The part of the suite about resources: what tasks share is never given to two at once, and no more than there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rhapsody.errors import UnsupportedError
from rhapsody.model.resources import Resources
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.testing import tasks
from rhapsody.testing._base import SuitePart, conforms
from rhapsody.testing.assertions import check, must_be
from rhapsody.testing.rig import Rig

_TOO_MUCH = {"cores_per_rank": 2**20, "gpus_per_rank": 2**16, "memory": 2**60}
_CAPABILITY = {"cores_per_rank": "cores_per_rank", "gpus_per_rank": "gpus", "memory": "memory"}
_SECONDS = 0.2  # that each task holds what it was given
_TASKS = 4  # that want it at the same time
# In turn: that it has begun, with its GPUs, and that it has ended.
_HOLD = f'echo "+ $2 $CUDA_VISIBLE_DEVICES" >> "$1"; sleep {_SECONDS}; echo "- $2" >> "$1"'


class ShareTests(SuitePart):
    """Cores, GPUs and memory are counted."""

    @conforms("cores", needs="cores_per_rank")
    async def test_too_many_cores_are_refused(self, rig: Rig) -> None:
        """UnsupportedError at submit, and not a task that waits for ever or runs with fewer."""
        await _is_too_much(rig, "cores_per_rank")

    @conforms("GPUs", needs="gpus")
    async def test_too_many_gpus_are_refused(self, rig: Rig) -> None:
        """UnsupportedError at submit, and not a task that waits for ever or runs with fewer."""
        await _is_too_much(rig, "gpus_per_rank")

    @conforms("memory", needs="memory")
    async def test_too_much_memory_is_refused(self, rig: Rig) -> None:
        """UnsupportedError at submit, and not a task that waits for ever or runs with less."""
        await _is_too_much(rig, "memory")

    @conforms("cores", needs="cores_per_rank")
    async def test_cores_are_not_given_twice(self, rig: Rig) -> None:
        """Tasks that run at the same time never have more cores together than the engine."""
        life = await rig.shared()
        total = life.context.capacity.cores or life.context.capacity.slots
        if total < 2:
            return
        cores = total // 2 + 1
        try:
            book = await _hold(rig, Resources(cores_per_rank=cores))
        except UnsupportedError:  # it has several nodes, and none has as many
            try:
                book = await _hold(rig, Resources(cores_per_rank=(cores := 2)))
            except UnsupportedError:
                return
        most = max(len(running) for running in _moments(book))
        check(
            most * cores <= total,
            f"{most} tasks of {cores} cores ran at the same time on an engine of {total} cores; hand a task over when "
            f"there is room for it, or give Capacity(cores=...) and let core do it",
        )

    @conforms("GPUs", needs="gpus")
    async def test_gpus_are_not_given_twice(self, rig: Rig) -> None:
        """Tasks that run at the same time have GPUs of their own, named in CUDA_VISIBLE_DEVICES; if there are any."""
        try:
            book = await _hold(rig, Resources(gpus_per_rank=1))
        except UnsupportedError:
            return
        for running in _moments(book):
            given = sorted(",".join(running.values()).split(",")) if running else []
            check(
                all(given) and len(given) == len(set(given)) == len(running),
                f"tasks that each asked for a GPU ran at the same time with CUDA_VISIBLE_DEVICES "
                f"{list(running.values())}; each must have one of its own",
            )

    @conforms("nodes", needs="exclusive")
    async def test_exclusive_task_runs_alone(self, rig: Rig) -> None:
        """Of exclusive tasks on a machine, one runs at a time, and no other beside it."""
        life = await rig.shared()
        if life.context.capacity.cores is None:  # an engine of several machines, of which this test knows nothing
            return
        book = await _hold(rig, Resources(exclusive=True), others=2)
        alone = {str(number) for number in range(_TASKS)}
        for running in _moments(book):
            check(
                len(running) < 2 or alone.isdisjoint(running),
                f"a task with exclusive=True ran beside another: {', '.join(running)}",
            )


async def _is_too_much(rig: Rig, field: str) -> None:
    task = _task(rig, Path("/dev/null"), "0", Resources(**{field: _TOO_MUCH[field]}))
    about = f"Resources({field}={_TOO_MUCH[field]})"
    life = await rig.shared()
    try:
        await life.session.submit_tasks([task])
    except UnsupportedError as error:
        for name in (task.uid, rig.backend_name):
            check(name in str(error), f"{about} is refused by an error that does not name {name!r}: {error}")
        return
    await rig.cancel([task], life)
    check(
        False,
        f"the backend declares {_CAPABILITY[field]} and accepts {about}, which no machine has; refuse in "
        f"rhapsody_validate what the engine does not have, or do not declare it",
    )


async def _hold(rig: Rig, resources: Resources, others: int = 0) -> list[str]:
    """Run tasks that want the same at the same time, and others; return what they wrote."""
    book = rig.new_folder() / "book"
    wanting = [_task(rig, book, str(number), resources) for number in range(_TASKS)]
    plain = [_task(rig, book, f"other{number}", None) for number in range(others)]
    for task in await rig.finish([*wanting, *plain]):
        must_be(task, TaskState.DONE, f"a task with {resources}")
    return book.read_text().splitlines()


def _task(rig: Rig, book: Path, name: str, resources: Resources | None) -> ComputeTask:
    fields: dict[str, Any] = {"resources": resources}
    if rig.capabilities.executables:
        return ComputeTask(executable="/bin/sh", arguments=["-c", _HOLD, "sh", str(book), name], **fields)
    return ComputeTask(function=tasks.hold, args=(str(book), name, _SECONDS), **fields)


def _moments(book: list[str]) -> list[dict[str, str]]:
    """Return what ran after each line of the book: by name the GPUs that it had."""
    running: dict[str, str] = {}
    found = []
    for line in book:
        sign, name, *gpus = line.split(" ")
        if sign == "+":
            running[name] = gpus[0] if gpus else ""
        else:
            running.pop(name, None)
        found.append(dict(running))
    return found
