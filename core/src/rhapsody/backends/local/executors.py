"""Runs batches through any `concurrent.futures.Executor` of the caller's: bytes in, bytes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor

from rhapsody import worker
from rhapsody.errors import SubmitError, WorkerLostError
from rhapsody.model.outcome import CancelResult, Outcome, Returned
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.protocol.batch import TaskBatch
from rhapsody.seam.channel import Event
from rhapsody.seam.context import BackendContext


def _run_isolated(payload: bytes) -> bytes:
    """Run a batch in a process that runs nothing beside it."""
    worker.isolate()
    return worker.run_batch(payload)


class ExecutorLane:
    """Batches that an executor holds; it is used and never shut down.

    Args:
        executor: anything that runs `rhapsody.worker.run_batch` where rhapsody-core is installed.
        context: of the backend.
    """

    def __init__(self, executor: Executor, context: BackendContext) -> None:
        self._executor = executor
        self._context = context
        self._futures: dict[int, tuple[TaskBatch, Future[bytes]]] = {}  # by batch uid
        self._canceled: set[int] = set()  # by batch uid: canceled here, and not by the owner of the executor

    def submit(self, batch: TaskBatch, environments: Mapping[str, Mapping[str, str]]) -> None:
        """Hand a batch over; `environments` are variables of its tasks, by uid.

        Raises:
            SubmitError: the executor takes no more work.
        """
        try:
            run = _run_isolated if isinstance(self._executor, ProcessPoolExecutor) else worker.run_batch
            future = self._executor.submit(run, batch.encode(environments))
        except RuntimeError as error:  # shut down, or broken
            raise SubmitError(
                f"the executor given to backend {self._context.backend!r} takes no more work: {error}"
            ) from error
        self._futures[batch.uid] = batch, future
        future.add_done_callback(lambda done: self._ended(batch, done))

    def cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Take back batches that the executor has not started; what is left of a batch goes back to the backlog."""
        results = dict.fromkeys((task.uid for task in tasks), CancelResult.CANNOT_STOP)
        outcomes: list[Event] = []
        for batch, future in list(self._futures.values()):
            wanted = {task.uid for task in batch.tasks} & results.keys()
            if wanted and self._take_back(batch, future):
                outcomes += [Outcome(uid, TaskState.CANCELED) for uid in wanted]
                outcomes.append(Returned([task.uid for task in batch.shipped if task.uid not in wanted]))
                results.update(dict.fromkeys(wanted, CancelResult.NEVER_STARTED))
        self._context.events.put(outcomes)
        return results

    def close(self) -> None:
        """Take back whatever has not started."""
        for batch, future in list(self._futures.values()):
            self._take_back(batch, future)

    def _take_back(self, batch: TaskBatch, future: Future[bytes]) -> bool:
        """Cancel a batch that has not started; what becomes of its tasks is the caller's to report."""
        self._canceled.add(batch.uid)
        if future.cancel():
            return True
        self._canceled.discard(batch.uid)
        return False

    def _ended(self, batch: TaskBatch, future: Future[bytes]) -> None:
        """Report a batch's end; called in a thread of the executor's, or in whichever canceled it."""
        self._futures.pop(batch.uid, None)
        if future.cancelled():
            if batch.uid in self._canceled:
                self._canceled.discard(batch.uid)
            else:  # by the executor's owner: it never started
                self._context.events.put([Returned([task.uid for task in batch.shipped])])
            return
        try:
            events: list[Event] = [*batch.decode(future.result())]
        except (Exception, CancelledError) as error:  # the executor lost the batch: a broken pool, a killed worker
            events = []
            for task in batch.shipped:
                lost = WorkerLostError(
                    f"task {task.uid}: the executor of backend {self._context.backend!r} lost it: "
                    f"{type(error).__name__}: {error}"
                )
                lost.__cause__ = error
                events.append(Outcome(task.uid, TaskState.FAILED, exception=lost))
        self._context.events.put(events)
