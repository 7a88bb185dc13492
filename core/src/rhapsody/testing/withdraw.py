"""The part of the suite about batches: no task waits behind a long one while a slot has nothing to do."""

from __future__ import annotations

import pytest

from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.testing import tasks
from rhapsody.testing._base import SuitePart, conforms
from rhapsody.testing.assertions import must_be
from rhapsody.testing.rig import Rig

_SHORT = 200  # tasks: enough that the next ones share batches


class WithdrawTests(SuitePart):
    """What a backend that has `rhapsody_withdraw` gives back."""

    @conforms("batches give back", needs="functions streams")
    async def test_nothing_waits_behind_a_long_task(self, rig: Rig) -> None:
        """Tasks of a function that proved short end while one call of it goes on."""
        life = await rig.shared()
        if not hasattr(life.backend, "rhapsody_withdraw"):
            pytest.skip("the backend has no rhapsody_withdraw")
        if not life.backend.batching.enabled:
            pytest.skip("the backend makes every task a batch of its own")
        if life.slots < 2:
            pytest.skip("the backend has one slot, which the long task takes")
        passed = rig.new_folder()
        (passed / "open").touch()

        def short(count: int) -> list[ComputeTask]:
            return [ComputeTask(function=tasks.wait_at, args=(str(passed), f"{number}")) for number in range(count)]

        await rig.finish(short(_SHORT), life)
        with rig.gate() as gate:
            waits = gate.function("long")
            others = short(_SHORT)
            batch = [*others[: _SHORT // 2], waits, *others[_SHORT // 2 :]]
            await rig.submit(batch, life)
            await rig.until(
                lambda: all(task.is_final for task in others),
                lambda: (
                    f"{sum(not task.is_final for task in others)} tasks wait behind a long one of their function; "
                    f"report those that have not begun as Returned in rhapsody_withdraw"
                ),
            )
            gate.open()
            await rig.ended(batch, life)
        for task in batch:
            must_be(task, TaskState.DONE, "a task beside a long one of the same function")
