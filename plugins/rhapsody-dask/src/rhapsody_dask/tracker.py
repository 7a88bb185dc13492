"""The batches that the scheduler holds, from submission to their last report. All of it runs on the engine's loop."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from distributed import Client, Future
from distributed.scheduler import KilledWorker
from rhapsody.errors import BackendError, BackendLostError, UnsupportedError, WorkerLostError
from rhapsody.plugin import (
    BackendContext,
    BackendLost,
    CancelResult,
    ComputeTask,
    Event,
    Outcome,
    Returned,
    Started,
    TaskState,
    settle_lost,
)

from . import on_scheduler, on_worker
from .batches import HeldBatch, begun_of, messages_of
from .kept import KeptResults
from .options import Placement
from .sending import LARGE, send_batches
from .withdraw import stop_executables, stop_tasks, take_back
from .workers import Workers

T = TypeVar("T")
TIDY_WITHIN: Final = 5.0  # seconds for the removal of what the backend left on the user's cluster
STOP_WITHIN: Final = 2.0  # seconds that executables have to stop before their workers are ended
CHECK_EVERY: Final = 1.0  # seconds between two checks for batches that no worker can run


class BatchTracker:
    """Submits batches, follows them and reports.

    Args:
        client: connected.
        context: of the backend.
        token: names the backend on the cluster.
        workers: of the cluster.
        timeout: seconds that a batch may wait for a worker which could run it; None for ever.
        own: whether the backend started the cluster, and closes it.
    """

    def __init__(
        self, client: Client, context: BackendContext, token: str, workers: Workers, timeout: float | None, *, own: bool
    ) -> None:
        self.workers = workers
        self._client = client
        self._context = context
        self._token = token
        self._worker_timeout = timeout
        self._own = own
        self._kept = KeptResults(client, context, workers)
        self._held: dict[int, HeldBatch] = {}
        self._held_of: dict[str, HeldBatch] = {}  # by uid of an open task
        self._lost = False
        self._checking: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[Any]] = set()
        self._cancels: set[asyncio.Task[Any]] = set()  # in progress, with or without their caller

    async def open(self) -> list[str]:
        """Read which workers there are. Returns warnings for the user."""
        self._client.subscribe_topic(self._token, self._receive)
        differences = await self.workers.open()
        self._checking = asyncio.create_task(self._check())
        return differences

    async def _check(self) -> None:
        """Check for batches that no worker can run, and for a client that was closed."""
        while not self._lost:
            await asyncio.sleep(CHECK_EVERY)
            if self._client.status not in ("running", "connecting"):
                self._lose_engine(f"its Dask client is {self._client.status}: it was closed outside the backend")
                return
            for held in list(self._held.values()):
                problem = held.starved(self.workers.known.values(), self._worker_timeout)
                if problem is None:
                    continue
                if not self.workers.known:
                    self._lose_engine(
                        f"no worker has joined the scheduler at {self._client.scheduler.address} within "
                        f"{self._worker_timeout:g} seconds; start workers, or give the backend a longer worker_timeout"
                    )
                    return
                self._drop(held, UnsupportedError(f"backend {self._context.backend!r}: {problem}"))

    # -- submission ---------------------------------------------------------------------------------------------------

    def submit(self, batches: Sequence[tuple[HeldBatch, bytes]]) -> None:
        """Hand batches to the scheduler, as few messages as possible."""
        for held, _ in batches:
            self._held[held.number] = held
            self._held_of.update(dict.fromkeys(held.open, held))
        for placement, message in messages_of(batches, LARGE):
            if message[0][0].stored or message[0][0].takes:
                self._do(self._send_with_stored(placement, message))
            else:
                self._send(placement, message)

    async def _send_with_stored(self, placement: Placement, part: list[tuple[HeldBatch, bytes]]) -> None:
        ((held, _),) = part
        try:
            stored = await self._kept.needed_by(held)
        except (BackendError, WorkerLostError) as error:
            self._drop(held, error)
        else:
            self._send(placement, part if held.number in self._held else [], stored)

    def _send(self, placement: Placement, part: list[tuple[HeldBatch, bytes]], stored: Sequence[Future] = ()) -> None:
        if self._lost or not part:
            return
        try:
            futures = send_batches(self._client, self._token, placement, self.workers.known.values(), part, stored)
        except Exception as error:
            self._lose_engine(f"its Dask client takes no work: {type(error).__name__}: {error}")
            return
        for (held, _), future in zip(part, futures, strict=True):
            held.future, held.watch = future, asyncio.create_task(self._watch(held, future))

    # -- reports ------------------------------------------------------------------------------------------------------

    def _receive(self, event: tuple[float, Sequence[Any]]) -> None:
        kind, *rest = event[1]
        if kind == on_scheduler.JOINED:
            self.workers.joined(*rest)
        elif kind == on_scheduler.LEFT:
            (address,) = rest
            self.workers.left(address)
            for held in [held for held in self._held.values() if held.worker == address]:
                held.worker = None
                if not held.placement.retries or held.stopping:  # else it runs elsewhere, as the user asked
                    self._lose_worker(held, address)
        elif rest[0] in self._held:
            self._report(self._held[rest[0]], kind, rest[1:])

    def _report(self, held: HeldBatch, kind: str, rest: Sequence[Any]) -> None:
        if kind == on_scheduler.FRAMES:
            address, frames, uid, at, _ = rest
            held.worker = address
            events: list[Event] = self._ended(held, frames)
            if uid is not None:
                events.append(Started(uid, at, self.workers.name_of(address)))
            self._context.events.put(events)
        elif kind == on_worker.FINAL:
            frames, held.has_more, held.attempt = rest
            self._context.events.put(self._ended(held, frames))
            if not held.has_more:
                self._conclude(held)
        elif kind == on_worker.TAKEN:
            self._drop(held, self._kept.lost_to(held))
        else:  # MOVED
            self._lose_worker(held, rest[0])

    def _ended(self, held: HeldBatch, frames: bytes) -> list[Event]:
        outcomes = held.batch.decode(frames)
        self._kept.adopt(held, outcomes)
        for outcome in outcomes:
            outcome.attempt = held.attempt
            held.open.pop(outcome.uid, None)
            self._held_of.pop(outcome.uid, None)
        return list(outcomes)

    async def _watch(self, held: HeldBatch, future: Future) -> None:
        """Follow a batch to what its reports do not have: a large result, or an end without reports."""
        error = await future.exception()
        if held.number not in self._held or self._kept.has(future):  # or its last report is on its way
            return
        if future.status == "finished":
            await self._fetch(held, future)
        elif isinstance(error, KilledWorker):
            self._lose_worker(held, error.last_worker.address)
        elif error is not None:
            problem = BackendError(
                f"backend {self._context.backend!r}: a worker could not run the batch: {type(error).__name__}: {error} "
                f"(rhapsody-core and rhapsody-dask must be installed where the workers run)"
            )
            problem.__cause__ = error
            self._drop(held, problem)
        elif self._client.status == "running":
            self._lose_worker(held, held.worker)  # the cluster was restarted, or another client canceled our key
        else:
            self._lose_engine(f"its Dask client has lost the scheduler (the client is {self._client.status})")

    async def _fetch(self, held: HeldBatch, future: Future) -> None:
        try:
            data = await self._client.gather(future)
        except Exception as error:
            if future.status != "finished":  # its worker died with it; the next one will report MOVED
                return
            if held.has_more:
                self._drop(held, WorkerLostError(f"a result could not be fetched from its worker: {error}"))
            else:  # it was withdrawn
                await self._give_back(held)
            return
        if data:  # False: it was withdrawn whole
            self._context.events.put(self._ended(held, data))
        self._conclude(held)

    def _conclude(self, held: HeldBatch) -> None:
        """Follow an ended batch no longer; what is left of it was withdrawn at its worker, and has not begun."""
        self._do(self._give_back(held)) if held.open else self._forget(held)

    async def _give_back(self, held: HeldBatch) -> None:
        """Return what is left of an ended batch, unless a withdrawal whose answer is under way reports it."""
        while held.withdrawals:  # noqa: ASYNC110  # rare, and soon over
            await asyncio.sleep(0.01)
        if held.number in self._held:
            self._withdrawn(held, (), True)

    # -- batches that end badly ---------------------------------------------------------------------------------------

    def _lose_worker(self, held: HeldBatch, address: str | None) -> None:
        """Settle a batch whose worker is gone and that will not be run again."""
        self._forget(held)
        self._do(self._settle(held, address))

    async def _settle(self, held: HeldBatch, address: str | None) -> None:
        progress, kept = await self.workers.record_of(address, held.number)
        left = set(held.open)  # the worker keeps what it has reported, too
        known = self._ended(held, kept)
        self._context.events.put([event for event in known if isinstance(event, Outcome) and event.uid in left])
        ended = {task.uid for task in held.batch.shipped if task.uid not in held.open or task.is_final}
        begun = begun_of(held.batch.shipped, held.number, progress)
        self._context.events.put(
            settle_lost(held.batch, ended, begun, held.stopping, why=self.workers.why_lost(address))
        )

    def _drop(self, held: HeldBatch, error: Exception) -> None:
        """Give a batch up: its tasks fail."""
        self._forget(held)
        self._context.events.put(
            [Outcome(task.uid, TaskState.FAILED, exception=error) for task in held.open.values() if not task.is_final]
        )

    def _lose_engine(self, why: str) -> None:
        """Give the backend up."""
        if not self._lost:
            self._lost = True
            self._context.events.put([BackendLost(BackendLostError(f"backend {self._context.backend!r}: {why}"))])

    def _forget(self, held: HeldBatch) -> None:
        """Follow a batch no longer, and let the scheduler forget it."""
        self._held.pop(held.number, None)
        for uid in held.open:
            if self._held_of.get(uid) is held:
                del self._held_of[uid]
        future, held.future, watch, held.watch = held.future, None, held.watch, None
        if future is not None:
            future.release()
        if watch is not None and watch is not asyncio.current_task():
            watch.cancel()

    def _do(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- cancel -------------------------------------------------------------------------------------------------------

    async def cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Stop tasks: those that wait will never run, executables are stopped.

        Goes on if the caller is interrupted: nothing else reports the batches that the scheduler has released.
        """
        return await self._finish(self._cancel(tasks))

    async def _finish(self, coroutine: Coroutine[Any, Any, T]) -> T:
        work = asyncio.create_task(coroutine)
        self._cancels.add(work)
        work.add_done_callback(self._canceled)
        return await asyncio.shield(work)

    def _canceled(self, work: asyncio.Task[Any]) -> None:
        self._cancels.discard(work)
        if not work.cancelled() and (error := work.exception()) is not None:  # its caller may no longer be there
            self._context.log.warning("cancel_not_finished", error=repr(error))

    async def _cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        wanted: dict[HeldBatch, list[ComputeTask]] = defaultdict(list)
        results: dict[str, CancelResult] = {}
        for task in tasks:
            if (held := self._held_of.get(task.uid)) is None:
                results[task.uid] = CancelResult.TOO_LATE
            else:
                wanted[held].append(task)
        where = (self._client, self._token, self._context.session)
        return results | await stop_tasks(*where, wanted, self._withdrawn, self.workers.may_be_ended)

    async def give_back(self, tasks: Sequence[ComputeTask]) -> None:
        """Take back tasks that have not begun, to be run elsewhere. Goes on as `cancel` does."""
        wanted: dict[HeldBatch, list[str]] = defaultdict(list)
        for task in tasks:
            if (held := self._held_of.get(task.uid)) is not None:
                wanted[held].append(task.uid)
        await self._finish(take_back(self._client, self._token, wanted, partial(self._withdrawn, canceled=False)))

    def _withdrawn(self, held: HeldBatch, uids: Sequence[str], is_whole: bool, *, canceled: bool = True) -> None:
        """Report tasks that will not begin; the others of a batch that was taken back whole run elsewhere."""
        uids = [uid for uid in uids if held.open.pop(uid, None) is not None]  # the others were reported before
        for uid in uids:
            self._held_of.pop(uid, None)  # its batch may have been lost meanwhile
        events: list[Event] = [Outcome(uid, TaskState.CANCELED) for uid in uids] if canceled else [Returned(uids)]
        if is_whole:
            self._forget(held)
            if others := [uid for uid, task in held.open.items() if not task.is_final]:
                events.append(Returned(others))
        self._context.events.put(events)

    # -- the end ------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Stop what still runs, and leave nothing on the cluster."""
        self._lost = True
        self._kept.close()
        if self._checking is not None:
            self._checking.cancel()
        try:
            if self._client.status == "running":
                await (self._stop_executables() if self._own else self._tidy())
        except Exception as error:  # the cluster is partly gone; the rest of it is closed next
            self._context.log.warning("cluster_not_tidied", error=repr(error))
        finally:
            for held in list(self._held.values()):
                self._forget(held)
            for task in self._background:
                task.cancel()
            self.workers.close()

    async def _stop_executables(self) -> None:
        """Stop them in good order; one that ignores SIGTERM is ended with its worker."""
        async with asyncio.timeout(STOP_WITHIN):
            where = self._client, self._token, self._context.session
            await stop_executables(*where, {held: list(held.open.values()) for held in self._held.values()})

    async def _tidy(self) -> None:
        async with asyncio.timeout(TIDY_WITHIN):
            if self._held:
                await self.cancel([task for held in self._held.values() for task in held.open.values()])
            await self.workers.tidy()
            # Not by unsubscribe_topic: its message would arrive after this and set the topic up again, for good.
            self._client._event_handlers.pop(self._token, None)
