"""Results that stay on their workers: results of Dask's own, which it keeps for as long as their futures live."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final
from weakref import WeakValueDictionary

from distributed import Client, Future
from rhapsody.errors import BackendError, SessionClosedError, WorkerLostError
from rhapsody.plugin import BackendContext, KeptResult, Outcome, TaskState
from rhapsody.worker import Kept, StoredBytes, load_result

from .batches import HeldBatch
from .stored import GONE
from .workers import Workers

CHECK_EVERY: Final = 1.0  # seconds between two checks of whether a result that is fetched is still there


class KeptResults:
    """The kept results of one backend. All of it runs on the engine's loop, but for `fetch` of a result.

    Args:
        client: connected.
        context: of the backend.
        workers: of the cluster.
    """

    def __init__(self, client: Client, context: BackendContext, workers: Workers) -> None:
        self._client = client
        self._backend = context.backend
        self._context = context
        self._workers = workers
        self._results: WeakValueDictionary[str, KeptResult] = WeakValueDictionary()  # by uid
        self._fetching: set[asyncio.Task[StoredBytes]] = set()
        self._closed = False

    def adopt(self, held: HeldBatch, outcomes: Sequence[Outcome]) -> None:
        """Put results that fetch into the outcomes of a batch, each with the future that so far was the batch's."""
        for outcome in outcomes if held.keeps else ():
            kept = outcome.return_value
            if not isinstance(kept, Kept):
                continue
            future, held.future = held.future, None
            if future is None:  # it is known from the record of a worker that is gone
                outcome.state, outcome.return_value = TaskState.FAILED, None
                outcome.exception = self._lost(outcome.uid)
            else:
                outcome.return_value = self._result(outcome.uid, kept, future)

    def _result(self, uid: str, kept: Kept, future: Future) -> KeptResult:
        loop = asyncio.get_running_loop()

        async def fetch() -> Any:
            if self._closed:
                raise self._over(uid)
            stored = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._bring(uid, future), loop))
            value = load_result(*kept)
            del stored  # it is in this process until here
            return value

        result = self._results[uid] = KeptResult(uid, self._backend, future, fetch, (load_result, tuple(kept)))
        return result

    async def _bring(self, uid: str, future: Future) -> StoredBytes:
        if self._closed:
            raise self._over(uid)
        gathering = asyncio.ensure_future(self._client.gather(future))
        self._fetching.add(gathering)
        try:
            was_there = False
            while not gathering.done() and not self._is_gone(future, was_there):
                was_there = was_there or future.status == "finished"
                await asyncio.wait([gathering], timeout=CHECK_EVERY)
        finally:
            self._fetching.discard(gathering)
            gathering.cancel()
        if self._closed:
            raise self._over(uid)
        done = gathering.done() and not gathering.cancelled() and gathering.exception() is None
        found = gathering.result() if done else None
        if not isinstance(found, StoredBytes):  # Dask would have made it anew, and was not let
            raise self._lost(uid)
        return found

    def _is_gone(self, future: Future, was_there: bool) -> bool:
        """Return whether a result is lost, though Dask would wait for a worker to make it anew."""
        return future.status != "finished" and (was_there or not self._workers.known)

    def has(self, future: Future) -> bool:
        """Return whether what a batch returned is a result that is kept, which must not come to the program."""
        return future.type is StoredBytes

    async def needed_by(self, held: HeldBatch) -> list[Future]:
        """Return the large values and the kept results that a batch needs.

        Raises:
            BackendError: a large value was lost.
            WorkerLostError: a kept result was.
        """
        try:
            stored = [await asyncio.wrap_future(scattered) for scattered in held.stored]
        except Exception as error:
            raise BackendError(f"backend {self._backend!r}: a large argument was lost: {error}") from error
        kept = [result.held for result in held.takes]
        if any(future.status in GONE for future in kept):
            raise self.lost_to(held)
        return stored + kept

    def lost_to(self, held: HeldBatch) -> WorkerLostError:
        """Return why the task of a batch cannot run: one of the kept results that it needs is gone."""
        return self._lost(" or ".join(dict.fromkeys(result.uid for result in held.takes)))

    def _lost(self, uid: str) -> WorkerLostError:
        return WorkerLostError(
            f"the result of task {uid}, which a worker of backend {self._backend!r} kept, was lost with that worker; "
            f"run the task again, or without keep=True"
        )

    def _over(self, uid: str) -> SessionClosedError:
        return SessionClosedError(
            f"the result of task {uid} was kept by backend {self._backend!r} until session "
            f"{self._context.session} closed; fetch it before"
        )

    def close(self) -> None:
        """Let Dask forget all of them."""
        self._closed = True
        for gathering in self._fetching:
            gathering.cancel()
        for result in list(self._results.values()):
            result.held.release()
