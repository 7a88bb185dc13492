"""The part of the suite about the loss of a worker, and of the engine."""

from __future__ import annotations

import pytest

from rhapsody.errors import BackendLostError
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.testing import tasks
from rhapsody.testing._base import SuitePart, conforms
from rhapsody.testing.assertions import check, must_be, state_of
from rhapsody.testing.rig import Rig

__tracebackhide__ = True  # frames of the suite


class LossTests(SuitePart):
    """What holds when a worker, or the engine, is killed."""

    @conforms("survives the loss of a worker", needs="functions")
    async def test_worker_loss_costs_one_task(self, rig: Rig) -> None:
        """The task that ran fails; those of its batch end elsewhere, each having run once; and the backend goes on."""
        killer = type(self).kill_worker
        if killer is None:
            pytest.skip("the author gives no `kill_worker`, a function that kills the worker that runs it")
        folder = rig.new_folder()

        def task(name: str, then: object = None) -> ComputeTask:  # one function, so that the killer shares a batch
            return ComputeTask(function=tasks.sign_then, args=(str(folder), name, then))

        await rig.finish([task(f"w{number}") for number in range(min(200, self.many))])
        batch = {f"t{number}": task(f"t{number}") for number in range(60)}
        victim = batch["t30"] = task("t30", killer)
        life = await rig.submit(list(batch.values()))
        await rig.ended(list(batch.values()), life)
        must_be(victim, TaskState.FAILED, "a task that kills its worker")
        failed = []
        for name, each in batch.items():
            book = folder / name
            ran = len(book.read_text().splitlines()) if book.exists() else 0
            check(ran < 2, f"task {name} beside one that killed its worker ran {ran} times; it must never run twice")
            check(each.state is not TaskState.DONE or ran == 1, f"task {name} is DONE and did not run")
            if each is not victim and each.state is not TaskState.DONE:
                failed.append(each)
        check(
            len(failed) < life.slots,
            f"a task killed its worker, and {len(failed)} others of 60 ended {state_of(failed[0]) if failed else ''}; "
            f"only what ran at that moment may be lost. Report each result as it comes (run_batch(payload, report), or "
            f"run_file and BatchReader), and end the rest by settle_lost, or BatchReader.lost",
        )
        after = await rig.one(function=tasks.same, args=(1,))
        must_be(after, TaskState.DONE, "a task after a worker died")

    @conforms("reports the loss of the engine", restarts=True)
    async def test_engine_loss_is_reported(self, rig: Rig) -> None:
        """What the engine held and what waits for it fails with BackendLostError, and nothing is left."""
        kill = type(self).kill_engine
        if kill is None:
            pytest.skip("the author gives no `kill_engine`, a function that kills the engine of a backend")
        life = await rig.start()
        check(life.start_error is None, f"the backend did not start: {life.start_error}")
        life.may_be_lost = True
        with rig.gate() as gate:
            batch = [gate.task(f"t{number}", rig.capabilities) for number in range(life.slots + 4)]
            await rig.submit(batch, life)
            await rig.until(gate.began, "no worker began any of the tasks")
            kill(life.backend)
            await rig.until(
                lambda: life.loss is not None,
                "the engine was killed, and the backend reports nothing of it; watch the engine, by context.poll say, "
                "and raise there, or put BackendLost(BackendLostError(...)) into the channel",
            )
            await rig.ended(batch, life)
        for each in batch:
            check(
                isinstance(each.exception, BackendLostError) or each.state is TaskState.DONE,
                f"a task whose engine was killed ended {state_of(each)}; it must fail with BackendLostError",
            )
        life.ledger.faults()  # the loss is no fault here
        await rig.end(life, wait=False)
        check(life.close_error is None, f"closing after the loss of the engine raised {life.close_error}")
        assert life.before is not None
        left = await life.before.left(min(10.0, rig.patience))
        check(
            not left.processes,
            f"the engine was killed, and these processes are left after the close: "
            f"{'; '.join(text[:160] for text in left.processes.values())}; context.guard ends what it marks or watches",
        )
