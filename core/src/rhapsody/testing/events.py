"""The part of the suite about what a backend reports: states, order, exactly one end, many tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from rhapsody.hookspecs import hookimpl
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.testing import tasks
from rhapsody.testing._base import SuitePart, conforms
from rhapsody.testing.assertions import check, must_be
from rhapsody.testing.rig import Rig

if TYPE_CHECKING:
    from rhapsody.model.transition import Transition

__tracebackhide__ = True  # frames of the suite

_CLOCKS = 1.0  # seconds that the clocks of two machines may differ


class EventTests(SuitePart):
    """What holds for the reports of every backend."""

    @conforms("states in order")
    async def test_running_means_a_worker_runs_it(self, rig: Rig) -> None:
        """A task is never RUNNING while it waits in the engine's queue; start reports are optional, true ones not."""
        life = await rig.shared()
        with rig.gate() as gate:
            names = [f"t{number}" for number in range(life.slots + 4)]
            batch = [gate.task(name, rig.capabilities) for name in names]
            await rig.submit(batch, life)
            await rig.until(lambda: len(gate.began()) >= 1, "no worker began any of the tasks")
            await rig.until(
                lambda: len(gate.began()) >= life.slots,
                lambda: (
                    f"the backend says Capacity(slots={life.slots}), and its engine runs {len(gate.began())} tasks "
                    f"at a time; say in set_capacity how many it runs"
                ),
            )
            await asyncio.sleep(0.2)  # for reports that should not come
            check(
                len(gate.began()) <= life.slots,
                f"the backend says Capacity(slots={life.slots}), and its engine runs {len(gate.began())} tasks at a "
                f"time; say in set_capacity how many it runs, and by `units` how many batches it may hold besides",
            )
            check(
                self.slots in (None, life.slots),
                f"the suite was given slots={self.slots}, and the backend says Capacity(slots={life.slots})",
            )

            def liars() -> list[str]:
                began = gate.began()
                return [
                    name
                    for name, task in zip(names, batch, strict=True)
                    if task.state is TaskState.RUNNING and name not in began
                ]

            await rig.until(
                lambda: not liars(),
                lambda: (
                    f"{len(liars())} tasks are RUNNING that no worker has begun (slots: {life.slots}); put Started "
                    f"into the channel when a worker begins the task, not when the engine takes it, or leave it out"
                ),
            )
            await rig.until(
                lambda: not rig.capabilities.streams or any(task.state is TaskState.RUNNING for task in batch),
                "tasks run, and none of them is RUNNING; put Started into the channel when a worker begins a task: for "
                "one that ends at once it may be left out, for one that runs for hours it is all that a user sees. An "
                "engine that reports nothing before a batch has ended declares streams=False",
            )
            gate.open()
            await rig.ended(batch, life)
        for task in batch:
            must_be(task, TaskState.DONE, "a task that waited for a gate")

    @conforms("states in order")
    async def test_states_and_times_only_go_forward(self, rig: Rig) -> None:
        """QUEUED, perhaps RUNNING, one final state; and the times that are reported are in that order."""
        life = await rig.shared()
        recorder = _Recorder()
        life.session.observe(recorder)
        batch = _quick(rig, 50)
        await rig.finish(batch, life)
        for task in batch:
            path = recorder.path(task)
            check(
                path in (["QUEUED", "DONE"], ["QUEUED", "RUNNING", "DONE"]),
                f"task {task.uid} went through {path}; a task that succeeds is QUEUED, RUNNING (once or never), DONE",
            )
            untold = [name for name in ("started_at", "ended_at", "ran_on") if getattr(task, name) is None]
            check(
                not untold,
                f"task {task.uid} is DONE without {', '.join(untold)}; give Outcome.started_at, ended_at and ran_on, "
                f"as TaskBatch.decode does from the frames",
            )
            times = [moment for moment in (task.submitted_at, task.started_at, task.ended_at) if moment is not None]
            check(
                all(late - early > -_CLOCKS for early, late in pairwise(times)),
                f"task {task.uid} was submitted, started and ended at {times}, in seconds since the epoch; give "
                f"Outcome.started_at and ended_at by time.time()",
            )

    @conforms("many tasks")
    async def test_tasks_of_all_submitters_end(self, rig: Rig) -> None:
        """Ten coroutines submit to one session at the same time."""
        life = await rig.shared()

        times = max(1, min(4, self.many // 50))

        async def submitter() -> Sequence[ComputeTask]:
            batches = []
            for _ in range(times):
                batches.append(_quick(rig, 5))
                await life.session.submit_tasks(batches[-1])
                await asyncio.sleep(0)
            return [task for batch in batches for task in batch]

        batch = [task for part in await asyncio.gather(*(submitter() for _ in range(10))) for task in part]
        await rig.ended(batch, life)
        for task in batch:
            must_be(task, TaskState.DONE, "a task of one of ten submitters")

    @conforms("many tasks", needs="functions executables")
    async def test_both_kinds_run_side_by_side(self, rig: Rig) -> None:
        """Mixed in one list, each gets its own kind of result."""
        batch = [
            ComputeTask(executable="echo", arguments=[number])
            if number % 3 == 0
            else ComputeTask(function=tasks.same, args=(number,))
            for number in range(30)
        ]
        await rig.finish(batch)
        for number, task in enumerate(batch):
            got = task.stdout if number % 3 == 0 else task.return_value
            check(
                got == (f"{number}\n" if number % 3 == 0 else number),
                f"task number {number} of a mixed list gave {got!r} and ended {task.state}",
            )

    @conforms("back-pressure: 10,000 tasks")
    async def test_ten_thousand_tasks_all_end_once(self, rig: Rig) -> None:
        """Submitted at once, each ends with its own result, and the backend holds no more than it asked for."""
        count = self.many if rig.capabilities.functions else min(self.many, 200)
        batch = _quick(rig, count)
        life = await rig.submit(batch)
        await rig.ended(batch, life)
        wrong = [task for task in batch if task.state is not TaskState.DONE]
        check(
            not wrong,
            f"{len(wrong)} of {count} tasks did not end DONE; the first ended {wrong[0].state if wrong else ''}",
        )
        if rig.capabilities.functions:
            mixed = [number for number, task in enumerate(batch) if task.return_value != number]
            check(not mixed, f"{len(mixed)} of {count} tasks have another's result, the first is number {mixed[:1]}")
        check(life.is_open, "the session ended by itself")

    @conforms("exactly one end")
    async def test_events_keep_the_contract(self, rig: Rig) -> None:
        """Nothing was reported twice, for a stranger, or after the end: in this test and all before it."""
        await rig.finish(_quick(rig, min(1000, self.many) if rig.capabilities.functions else 50))
        await asyncio.sleep(0.2)  # for reports that should not come
        faults = rig.faults()
        check(not faults, f"core had to drop reports of the backend:\n{faults}")


def _quick(rig: Rig, count: int) -> list[ComputeTask]:
    if rig.capabilities.functions:
        return [ComputeTask(function=tasks.same, args=(number,)) for number in range(count)]
    return [ComputeTask(executable="/bin/sh", arguments=["-c", "true"]) for _ in range(count)]


class _Recorder:
    """An observer that keeps the way of each task."""

    def __init__(self) -> None:
        self._ways: dict[str, list[str]] = {}

    @hookimpl
    def rhapsody_tasks_changed(self, transitions: Sequence[Transition]) -> None:
        for change in transitions:
            self._ways.setdefault(change.task.uid, []).append(change.new.value)

    def path(self, task: ComputeTask) -> list[str]:
        return self._ways.get(task.uid, [])
