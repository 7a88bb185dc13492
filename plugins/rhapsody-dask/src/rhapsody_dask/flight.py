"""The units that the scheduler holds, from submission to their last report. All of it runs on the engine's loop."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final

import dask.config
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
)

from . import on_scheduler, on_worker
from .options import Placement, unmet
from .units import Unit, split_by_ledger
from .withdraw import stop_executables, withdraw
from .workers import Workers

LARGE: Final = 8 * 2**20  # bytes of units submitted together; a larger single one is sent without Dask's warning
TIDY: Final = 5.0  # seconds to leave a cluster as it was
STOP: Final = 2.0  # seconds that executables have to stop when their workers are about to end
LOOK_EVERY: Final = 1.0  # seconds between two looks at what cannot run


class Flight:
    """Submits units, follows them and reports.

    Args:
        client: connected.
        context: of the backend.
        token: names the backend on the cluster.
        worker_timeout: seconds that a unit may wait for a worker which could run it; None for ever.
        own: whether the cluster lives and dies with the backend.
        adaptive: whether the cluster grows when there is work; None if unknown.
    """

    def __init__(
        self,
        client: Client,
        context: BackendContext,
        token: str,
        worker_timeout: float | None,
        *,
        own: bool,
        adaptive: bool | None,
    ) -> None:
        self.workers = Workers(client, context, token, own=own, adaptive=adaptive)
        self._client = client
        self._context = context
        self._token = token
        self._worker_timeout = worker_timeout
        self._own = own
        self._units: dict[int, Unit] = {}
        self._unit_of: dict[str, Unit] = {}  # by uid of an open task
        self._lost = False
        self._looking: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[Any]] = set()
        self._cancels: set[asyncio.Task[Any]] = set()  # that are under way, with or without their caller

    async def open(self) -> list[str]:
        """Learn of the workers. Returns warnings for the user."""
        self._client.subscribe_topic(self._token, self._receive)
        told = await self.workers.open()
        self._looking = asyncio.create_task(self._look())
        return told

    async def _look(self) -> None:
        """Look for units that no worker can run, and for a client that was closed."""
        while not self._lost:
            await asyncio.sleep(LOOK_EVERY)
            if self._client.status not in ("running", "connecting"):
                self._lose(f"its Dask client is {self._client.status}: somebody closed it")
                return
            now = time.monotonic()
            for unit in list(self._units.values()):
                problem = unmet(unit.placement, self.workers.known.values()) if unit.worker is None else None
                if problem is None:
                    unit.starved_since = None
                    continue
                unit.starved_since = unit.starved_since or now
                if self._worker_timeout is None or now - unit.starved_since < self._worker_timeout:
                    continue
                if not self.workers.known:
                    self._lose(
                        f"no worker has joined the scheduler at {self._client.scheduler.address} within "
                        f"{self._worker_timeout:g} seconds; start workers, or give the backend a longer worker_timeout"
                    )
                    return
                self._drop(unit, UnsupportedError(f"backend {self._context.backend!r}: {problem}"))

    # -- units go down ------------------------------------------------------------------------------------------------

    def submit(self, units: Sequence[tuple[Unit, bytes]]) -> None:
        """Hand units to the scheduler, as few messages as possible."""
        groups: dict[Placement, list[tuple[Unit, bytes]]] = defaultdict(list)
        for unit, payload in units:
            self._units[unit.number] = unit
            self._unit_of.update(dict.fromkeys(unit.open, unit))
            groups[unit.placement].append((unit, payload))
        for placement, group in groups.items():
            part: list[tuple[Unit, bytes]] = []
            size = 0
            for unit, payload in group:
                if part and size + len(payload) > LARGE:
                    self._send(placement, part)
                    part, size = [], 0
                part.append((unit, payload))
                size += len(payload)
            self._send(placement, part)

    def _send(self, placement: Placement, part: list[tuple[Unit, bytes]]) -> None:
        if self._lost:
            return
        quiet = sum(len(payload) for _, payload in part) > LARGE
        try:
            with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"} if quiet else {}):
                futures = self._client.map(
                    on_worker.run_unit,
                    [payload for _, payload in part],
                    [unit.number for unit, _ in part],
                    token=self._token,
                    again=placement.retries,
                    key=[unit.key for unit, _ in part],
                    **placement.keywords(),
                )
        except Exception as error:
            self._lose(f"its Dask client takes no work: {type(error).__name__}: {error}")
            return
        for (unit, _), future in zip(part, futures, strict=True):
            unit.future = future
            unit.watch = asyncio.create_task(self._watch(unit, future))

    # -- reports come up ----------------------------------------------------------------------------------------------

    def _receive(self, event: tuple[float, Sequence[Any]]) -> None:
        word, *rest = event[1]
        if word == on_scheduler.JOINED:
            self.workers.joined(*rest)
        elif word == on_scheduler.LEFT:
            (address,) = rest
            self.workers.left(address)
            for held in [held for held in self._units.values() if held.worker == address]:
                held.worker = None
                if not held.placement.retries:  # otherwise the scheduler has it run elsewhere, as the user asked
                    self._lose_worker(held, address)
        else:
            unit = self._units.get(rest[0])
            if unit is not None:
                self._report(unit, word, rest[1:])

    def _report(self, unit: Unit, word: str, rest: Sequence[Any]) -> None:
        if word == on_worker.FRAMES:
            address, frames, uid, at = rest
            unit.worker = address
            events: list[Event] = self._ended(unit, frames)
            if uid is not None:
                events.append(Started(uid, at, self.workers.name_of(address)))
            self._context.events.put(events)
        elif word == on_worker.FINAL:
            frames, more, unit.attempt = rest
            self._context.events.put(self._ended(unit, frames))
            if not more:
                self._release(unit)
        else:
            assert word == on_worker.MOVED
            self._lose_worker(unit, rest[0])

    def _ended(self, unit: Unit, frames: bytes) -> list[Event]:
        outcomes = unit.batch.decode(frames)
        for outcome in outcomes:
            outcome.attempt = unit.attempt
            unit.open.pop(outcome.uid, None)
            self._unit_of.pop(outcome.uid, None)
        return list(outcomes)

    async def _watch(self, unit: Unit, future: Future) -> None:
        """Follow a unit to what its reports do not tell: a large result, or an end without them."""
        error = await future.exception()
        if unit.number not in self._units:
            return
        if future.status == "finished":
            await self._fetch(unit, future)
        elif isinstance(error, KilledWorker):
            self._lose_worker(unit, error.last_worker.address)
        elif error is not None:
            problem = BackendError(
                f"backend {self._context.backend!r}: a worker could not run the unit: {type(error).__name__}: {error} "
                f"(rhapsody-core and rhapsody-dask must be installed where the workers run)"
            )
            problem.__cause__ = error
            self._drop(unit, problem)
        elif self._client.status == "running":
            self._lose_worker(unit, unit.worker)  # the cluster was restarted, or somebody canceled our key
        else:
            self._lose(f"its Dask client has lost the scheduler (the client is {self._client.status})")

    async def _fetch(self, unit: Unit, future: Future) -> None:
        try:
            data = await self._client.gather(future)
        except Exception as error:
            if future.status != "finished":  # its worker died with it; the next one will report MOVED
                return
            self._drop(unit, WorkerLostError(f"a result could not be fetched from its worker: {error}"))
            return
        if data is False:
            await self._give_back(unit)
            return
        if data:
            self._context.events.put(self._ended(unit, data))
        self._release(unit)

    async def _give_back(self, unit: Unit) -> None:
        """Return a unit that a worker has not begun, because it had promised so, unless a withdrawal takes it back."""
        while unit.withdrawals:  # noqa: ASYNC110  # rare, and soon over
            await asyncio.sleep(0.01)
        if unit.number in self._units:
            self._take_back(unit, ())

    # -- units that end badly -----------------------------------------------------------------------------------------

    def _lose_worker(self, unit: Unit, address: str | None) -> None:
        """Settle a unit whose worker is gone and that will not be run again."""
        self._forget(unit)
        self._do(self._settle(unit, address))

    async def _settle(self, unit: Unit, address: str | None) -> None:
        tasks = [task for task in unit.open.values() if not task.is_final]
        ledger = await self.workers.ledger_of(address) if address else None
        lost, waiting = split_by_ledger(tasks, unit.number, ledger)
        name = self.workers.name_of(address) or "(unknown)"
        events: list[Event] = [
            Outcome(
                task.uid,
                TaskState.FAILED,
                exception=WorkerLostError(
                    f"task {task.uid}: Dask worker {name} was lost while it held the task (killed, out of memory, or "
                    f"removed from the cluster); it is not run again, as backend_options={{'retries': 1}} would allow"
                ),
            )
            for task in lost
        ]
        if waiting:
            events.append(Returned([task.uid for task in waiting]))
        self._context.events.put(events)

    def _drop(self, unit: Unit, error: Exception) -> None:
        """Give a unit up: its tasks fail."""
        self._forget(unit)
        self._context.events.put(
            [Outcome(task.uid, TaskState.FAILED, exception=error) for task in unit.open.values() if not task.is_final]
        )

    def _lose(self, why: str) -> None:
        """Give the backend up."""
        if not self._lost:
            self._lost = True
            self._context.events.put([BackendLost(BackendLostError(f"backend {self._context.backend!r}: {why}"))])

    def _release(self, unit: Unit) -> None:
        """Let the scheduler forget a unit that has ended."""
        for task in unit.open.values():
            self._unit_of.pop(task.uid, None)
        self._forget(unit)

    def _forget(self, unit: Unit) -> None:
        self._units.pop(unit.number, None)
        for uid in unit.open:
            if self._unit_of.get(uid) is unit:
                del self._unit_of[uid]
        future, unit.future = unit.future, None
        if future is not None:
            future.release()
        if unit.watch is not None and unit.watch is not asyncio.current_task():
            unit.watch.cancel()

    def _do(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- cancel -------------------------------------------------------------------------------------------------------

    async def cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Stop tasks: those that wait will never run, executables are stopped.

        Goes on if the caller is interrupted: what the scheduler has let go of is reported by nobody else.
        """
        work = asyncio.create_task(self._cancel(tasks))
        self._cancels.add(work)
        work.add_done_callback(self._canceled)
        return await asyncio.shield(work)

    def _canceled(self, work: asyncio.Task[Any]) -> None:
        self._cancels.discard(work)
        if not work.cancelled() and (error := work.exception()) is not None:  # its caller may no longer be there
            self._context.log.warning("cancel_not_finished", error=repr(error))

    async def _cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        wanted: dict[Unit, list[ComputeTask]] = defaultdict(list)
        results: dict[str, CancelResult] = {}
        for task in tasks:
            unit = self._unit_of.get(task.uid)
            if unit is None:
                results[task.uid] = CancelResult.TOO_LATE
            else:
                wanted[unit].append(task)
        for unit in wanted:
            unit.withdrawals += 1
        try:
            uids = {unit: [task.uid for task in asked] for unit, asked in wanted.items()}
            async for unit, never, is_back in withdraw(self._client, self._token, uids):
                results.update(dict.fromkeys(never, CancelResult.NEVER_STARTED))
                if is_back:
                    self._take_back(unit, never)
                for uid in never:
                    unit.open.pop(uid, None)
                    self._unit_of.pop(uid, None)
                self._context.events.put([Outcome(uid, TaskState.CANCELED) for uid in never])
        finally:
            for unit in wanted:
                unit.withdrawals -= 1
        running = _by_unit()
        for unit, asked in wanted.items():
            for task in asked:
                if task.uid in results:
                    continue
                if task.function is None and unit.worker is not None:
                    running[unit.worker][unit.number].append(task.uid)
                else:
                    results[task.uid] = CancelResult.CANNOT_STOP
        stopped = await stop_executables(self._client, self._token, self._context.session, running)
        for group in running.values():
            for uid in chain.from_iterable(group.values()):
                results[uid] = CancelResult.STOPPED if uid in stopped else CancelResult.TOO_LATE
        return results

    def _take_back(self, unit: Unit, canceled: Iterable[str]) -> None:
        gone = set(canceled)
        others = [uid for uid, task in unit.open.items() if uid not in gone and not task.is_final]
        self._forget(unit)
        if others:
            self._context.events.put([Returned(others)])

    # -- the end ------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Stop what still runs, and leave nothing on the cluster."""
        self._lost = True
        if self._looking is not None:
            self._looking.cancel()
        try:
            if self._client.status == "running":
                await (self._stop_executables() if self._own else self._tidy())
        except Exception as error:  # the cluster is half gone; what is left of it is closed next
            self._context.log.warning("cluster_not_tidied", error=repr(error))
        finally:
            for unit in list(self._units.values()):
                self._forget(unit)
            for task in self._background:
                task.cancel()
            self.workers.close()

    async def _stop_executables(self) -> None:
        """Stop them while there is time; what withstands SIGTERM is ended with its worker."""
        running = _by_unit()
        for unit in self._units.values():
            for task in unit.open.values():
                if task.function is None and unit.worker is not None:
                    running[unit.worker][unit.number].append(task.uid)
        async with asyncio.timeout(STOP):
            await stop_executables(self._client, self._token, self._context.session, running)

    async def _tidy(self) -> None:
        client = self._client
        async with asyncio.timeout(TIDY):
            if self._units:
                await self.cancel([task for unit in self._units.values() for task in unit.open.values()])
            await self.workers.tidy()
            # Not by unsubscribe_topic: its message would arrive after this and set the topic up again, for good.
            client._event_handlers.pop(self._token, None)


def _by_unit() -> dict[str, dict[int, list[str]]]:
    """Return a mapping for uids of tasks by address of a worker and number of a unit."""
    return defaultdict(lambda: defaultdict(list))
