"""What holds of a `TaskFlow` whatever has happened."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import attrs
from rhapsody.api import CancelResult, ComputeTask, TaskState
from rhapsody.scheduling.taskflow import TaskFlow


@attrs.define(eq=False)
class Cancel:
    """One caller of cancel, who waits for the answer."""

    tasks: list[ComputeTask]
    steps: Generator[Any, Any, Any]
    step: Any = None
    said: dict[str, CancelResult] = attrs.field(factory=dict)  # by the engine
    gave_up: bool = False  # the deadline passed
    is_final: bool = True  # False: only an attempt is to be stopped


class Promise:
    """The checks of a history."""

    flow: TaskFlow
    accepted: list[ComputeTask]
    delayed: list[ComputeTask]
    queued: list[ComputeTask]
    running: list[ComputeTask]
    finals: dict[str, list[TaskState]]
    runs: dict[str, int]
    lost: list[Exception]
    ended: bool
    packs: bool
    most: int | None
    pending: list[ComputeTask] | None

    def nothing_is_lost(self) -> None:
        """A task that has not ended waits, is in a batch, or is held by the session until its next attempt."""
        queues = [self.flow._backlog._plain, *self.flow._backlog._queues.values()]
        waiting = [task for queue in queues for task in queue._tasks if not task.is_final]
        again = [each.task for each in self.flow.expiring._held.values() if each is not None]
        held = [*self.flow._held.values(), *again]
        assert len(waiting) == self.flow._backlog.waiting
        assert sorted(t.uid for t in waiting + held + self.delayed) == sorted(
            t.uid for t in self.accepted if not t.is_final
        )

    def a_task_ends_once_and_runs_once(self) -> None:
        assert all(len(states) == 1 for states in self.finals.values())
        assert {task.uid for task in self.accepted if task.is_final} == self.finals.keys()
        assert all(count == 1 for count in self.runs.values())
        assert len(self.lost) <= 1

    def nothing_outlives_the_backend(self) -> None:
        if self.lost or self.ended:
            assert all(task.is_final or task in self.delayed for task in self.accepted)
            assert not self.flow.is_open

    def batches_add_up(self) -> None:
        batches = {id(task._batch): task._batch for task in self.flow._held.values()}
        assert len(batches) == self.flow._in_flight
        assert self.most is None or len(self.flow._held) <= self.most, "the engine holds more than the user allows"
        for batch in batches.values():
            assert batch.left == sum(task._batch is batch for task in batch.tasks)

    def nothing_waits_beside_room(self) -> None:
        has_room = self.flow._packing.has_room(self.flow._in_flight, len(self.flow._held))
        if self.flow.is_open and self.pending is None and has_room:
            assert not self.flow._backlog.waiting or (self.packs and self.flow._held)

    def nothing_idle_is_counted(self) -> None:
        """While the engine holds nothing, nothing of it is taken."""
        placement = self.flow._packing._placement
        if placement is not None and self.flow.is_open and not self.flow._held:
            assert not placement.grants
            assert placement._free == placement._whole

    def check_answer(self, cancel: Cancel, results: dict[str, CancelResult]) -> None:
        """What a cancel answers is true when it answers."""
        assert results.keys() == {task.uid for task in cancel.tasks}
        for task in cancel.tasks:
            result = results[task.uid]
            if result is CancelResult.NEVER_STARTED:
                assert task.state is TaskState.CANCELED
                assert task.started_at is None
            elif result is CancelResult.STOPPED:
                assert task.state is TaskState.CANCELED
            elif result is CancelResult.CANNOT_STOP:
                assert not task.is_final
                assert cancel.gave_up or cancel.said.get(task.uid, result) is result
            else:
                assert task.is_final or task not in self.queued + self.running
