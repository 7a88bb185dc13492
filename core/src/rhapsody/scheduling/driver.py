"""Carries out the instructions of a `TaskFlow`: calls the hooks of its backend, and awaits them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from rhapsody.errors import InvalidBackendError, describe
from rhapsody.log import get_logger
from rhapsody.model.outcome import CancelResult
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.protocol.batch import TaskBatch
from rhapsody.protocol.store import large_values
from rhapsody.scheduling.batching import AdaptiveBatching
from rhapsody.scheduling.canceling import CancelSteps, ExpireSteps, expire_steps
from rhapsody.scheduling.deadlines import CANCEL_GRACE
from rhapsody.scheduling.instructions import (
    AskBack,
    AskCancel,
    AwaitEnds,
    AwaitSubmit,
    Change,
    Choose,
    Deliver,
    HeldBatch,
    Instruction,
    Lost,
    Submit,
    TryAgain,
)
from rhapsody.scheduling.overdue import CHECK_EVERY
from rhapsody.scheduling.taskflow import TaskFlow
from rhapsody.seam.calls import BackendCaller
from rhapsody.seam.capabilities import Deadlines
from rhapsody.seam.channel import Event
from rhapsody.seam.context import BackendContext

log = get_logger(__name__)
Sink = Callable[[Sequence[Change]], None]
Retries = Callable[[TryAgain], None]
OnBatch = Callable[[str, TaskBatch], None]
EndsOf = Callable[[Iterable[str]], Awaitable[None]]


class FlowDriver:
    """Runs the tasks of one backend, by what its `TaskFlow` decides.

    Args:
        name: of the backend.
        hooks: of the backend.
        batching: core's default `rhapsody_batch`.
        deadlines: for hooks that are awaited.
        sink: records what happened to tasks, in order.
        retries: hands tasks whose attempt failed to a backend once more.
        on_batch: called with each batch before it goes down.
        ends_of: waits until the ends of tasks, by uid, are recorded.
        on_lost: called when the engine is gone, or the backend broke its contract.
        most: tasks that the engine holds, at most; None for as many as it takes.
    """

    def __init__(
        self,
        name: str,
        hooks: BackendCaller,
        batching: AdaptiveBatching,
        deadlines: Deadlines,
        *,
        sink: Sink,
        retries: Retries,
        ends_of: EndsOf,
        on_batch: OnBatch,
        on_lost: Callable[[Exception], None],
        most: int | None = None,
    ) -> None:
        self._flow = TaskFlow(name, batching, can_cancel=hooks.can_cancel, most=most)
        self._name = name
        self._hooks = hooks
        self._deadlines = deadlines
        self._sink = sink
        self._retries = retries
        self._ends_of = ends_of
        self._on_batch = on_batch
        self._on_lost = on_lost
        self._context: BackendContext | None = None
        self._instructions: deque[Instruction] = deque()  # not carried out yet
        self._carrying_out = False
        self._submitting: asyncio.Task[None] | None = None
        self._overdue_check: asyncio.TimerHandle | None = None  # for tasks to ask back
        self._withdrawing: asyncio.Task[None] | None = None

    def open(self, context: BackendContext) -> None:
        """The engine is ready: let tasks go down."""
        self._context = context
        self._carry_out(self._flow.open(context.capacity))

    async def stop(self) -> None:
        """Let nothing more go down; what the engine holds may still end."""
        self._flow.stop()
        if self._overdue_check is not None:
            self._overdue_check.cancel()
        under_way = [work for work in (self._submitting, self._withdrawing) if work is not None]
        for work in under_way:
            work.cancel()
        if under_way:
            await asyncio.wait(under_way, timeout=CANCEL_GRACE)

    def lose(self, error: Exception) -> None:
        """Give the backend up: everything that it holds, and everything that waits for it, fails."""
        self._carry_out(self._flow.lose(error))

    def end(self, error: Exception) -> None:
        """Leave no task behind: whatever has no outcome by now fails with this error."""
        self._carry_out(self._flow.end(error))

    def accept(self, tasks: Sequence[ComputeTask]) -> None:
        """Take tasks that the session has accepted."""
        self._carry_out(self._flow.accept(tasks))

    def apply(self, events: Sequence[Event]) -> None:
        """Apply a list of events, and submit what there is room for now."""
        self._carry_out(self._flow.apply(events, time.perf_counter()))

    def explain(self, task: ComputeTask) -> str:
        """Return a sentence that says what a task waits for, where it runs, or how it ended."""
        why = self._hooks.explain(task) if task.state is TaskState.QUEUED else None
        return self._flow.explain(task) if why is None else f"task {task.uid} waits {why}"

    def _carry_out(self, instructions: Sequence[Instruction]) -> None:
        """Carry instructions out, and those that follow from them.

        They are queued, so that one which arrives while another is carried out waits for its turn: the flow counts on
        their order.
        """
        queue = self._instructions
        queue.extend(instructions)
        if self._carrying_out:
            return
        self._carrying_out = True
        try:
            while queue:
                instruction = queue.popleft()
                if isinstance(instruction, Deliver):
                    self._sink(instruction.changes)
                elif isinstance(instruction, Choose):
                    queue.extend(self._choose(instruction))
                elif isinstance(instruction, Submit):
                    queue.extend(self._submit(instruction.batch))
                elif isinstance(instruction, TryAgain):
                    self._retries(instruction)
                elif isinstance(instruction, AskBack):
                    self._ask_back(instruction.tasks)
                elif isinstance(instruction, Lost):
                    self._on_lost(instruction.error)
                else:
                    reason = "not held, or reported before"
                    log.warning("reports_dropped", backend=self._name, count=instruction.count, reason=reason)
        finally:
            self._carrying_out = False
        if self._overdue_check is None and self._hooks.can_withdraw and len(self._flow.shared) and self._flow.is_open:
            self._overdue_check = asyncio.get_running_loop().call_later(CHECK_EVERY, self._withdraw_overdue)

    def _choose(self, instruction: Choose) -> list[Instruction]:
        try:
            answer = self._hooks.batch(instruction.backlog)
        except Exception as error:
            return self._flow.chosen(error, time.perf_counter())
        return self._flow.chosen(answer, time.perf_counter())

    def _submit(self, held: HeldBatch) -> list[Instruction]:
        assert self._context is not None
        batch = TaskBatch(held.uid, held.tasks, self._context, held.gpus)
        log.debug("batch_submitted", backend=self._name, batch=batch.uid, tasks=len(batch))
        self._on_batch(self._name, batch)
        try:
            large = large_values(held.tasks) if self._context.store is not None else None
            pending = self._store_and_submit(batch, large) if large else self._hooks.submit(batch)
        except Exception as error:
            return self._refused(batch, error)
        if pending is None:
            return self._flow.submitted()
        name = f"rhapsody submit {self._name}"
        self._submitting = asyncio.create_task(self._finish_submit(batch, pending), name=name)
        return []

    async def _store_and_submit(self, batch: TaskBatch, large: Mapping[int, tuple[Any, float]]) -> None:
        """Submit a batch once its large values are stored, in a thread: the loop goes on meanwhile."""
        assert self._context is not None
        await self._context.in_thread(batch.store, large)
        pending = self._hooks.submit(batch)
        if pending is not None:
            await pending

    async def _finish_submit(self, batch: TaskBatch, pending: Awaitable[None]) -> None:
        """Await an asynchronous submission."""
        deadline = self._deadlines.submit
        try:
            async with asyncio.timeout(deadline):
                await pending
        except asyncio.CancelledError:
            self._submitting = None
            self._flow.interrupted()
            raise
        except TimeoutError as error:
            self._end_submit(batch, error if str(error) else TimeoutError(f"no answer within {deadline:g} seconds"))
        except Exception as error:
            self._end_submit(batch, error)
        else:
            self._end_submit(batch, None)

    def _end_submit(self, batch: TaskBatch, refusal: Exception | None) -> None:
        self._submitting = None
        self._carry_out(self._flow.submitted() if refusal is None else self._refused(batch, refusal))

    def _refused(self, batch: TaskBatch, error: Exception) -> list[Instruction]:
        log.warning("submit_failed", backend=self._name, tasks=len(batch), error=str(error))
        return self._flow.refused(error, time.perf_counter())

    # -- withdraw --------------------------------------------------------------------------------------------------

    def _withdraw_overdue(self) -> None:
        """Ask back what waits behind a long task; what comes back is reported as Returned."""
        self._overdue_check = None
        if self._flow.is_open and (tasks := self._flow.overdue(time.perf_counter())):
            self._ask_back(tasks)
        self._carry_out(())  # again, as long as any batch may be overdue

    def _ask_back(self, tasks: Sequence[ComputeTask]) -> None:
        if self._withdrawing is None and self._hooks.can_withdraw:
            name = f"rhapsody withdraw {self._name}"
            self._withdrawing = asyncio.create_task(self._withdraw(tasks), name=name)

    async def _withdraw(self, tasks: Sequence[ComputeTask]) -> None:
        try:
            async with asyncio.timeout(self._deadlines.cancel):
                await self._hooks.withdraw(tasks)
        except Exception as error:  # they run where they are
            log.warning("withdraw_failed", backend=self._name, tasks=len(tasks), error=repr(error))
        finally:
            self._withdrawing = None

    # -- cancel ----------------------------------------------------------------------------------------------------

    async def cancel(self, tasks: Iterable[ComputeTask]) -> dict[str, CancelResult]:
        """Stop tasks, and say of each what became of it."""
        results: dict[str, CancelResult] = await self._follow(self._flow.cancel(tasks))
        return results

    async def expire(self, task: ComputeTask) -> None:
        """Stop the attempt of a task that has run for its timeout."""
        if await self._follow(expire_steps(self._flow, task)) is CancelResult.CANNOT_STOP:
            log.warning("timeout_cannot_stop", backend=self._name, task=task.uid)

    async def _follow(self, steps: CancelSteps | ExpireSteps) -> Any:
        """Carry out one step after the other, and return what the last one returns."""
        answer: Mapping[str, CancelResult] | None = None
        until = 0.0  # by the loop's clock: one deadline for the hook, and for what follows from its answer
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                return end.value
            answer = None
            if isinstance(step, Deliver | TryAgain):
                self._carry_out([step])
            elif isinstance(step, AwaitSubmit):
                if self._submitting is not None:
                    await asyncio.wait([self._submitting], timeout=self._deadlines.cancel)
            elif isinstance(step, AskCancel):
                until = asyncio.get_running_loop().time() + self._deadlines.cancel
                answer = await self._ask_cancel(step.tasks, until)
            else:
                await self._await_ends(step, until)

    async def _ask_cancel(self, tasks: Sequence[ComputeTask], until: float) -> Mapping[str, CancelResult] | None:
        try:
            async with asyncio.timeout_at(until):
                answer = await self._hooks.cancel(tasks)
            if not isinstance(answer, Mapping):
                raise InvalidBackendError(f"rhapsody_cancel of backend {self._name!r} returned {describe(answer)}")
            return dict(answer)
        except Exception as error:  # its tasks keep their real end; the caller learns that they could not be stopped
            log.warning("cancel_failed", backend=self._name, error=repr(error))
            return None

    async def _await_ends(self, step: AwaitEnds, until: float) -> None:
        if step.seconds is not None:
            until = min(until, asyncio.get_running_loop().time() + step.seconds)
        try:
            async with asyncio.timeout_at(until):
                await self._ends_of(step.uids)
        except TimeoutError:
            log.warning("canceled_tasks_did_not_end", backend=self._name, tasks=len(step.uids))
