"""What runs inside Dask's workers: batches, and the record of them that outlives a worker.

A worker reports through the event stream that it has with the scheduler (`Worker.log_event`), on a topic that only our
client reads. That is ordered, needs no round trip, and costs less than fetching a result: a batch returns through Dask
only what is too large for it. The messages are lists whose first element is one of these constants:

    [FRAMES, number, address, frames, uid, time, begun]    tasks that have ended, and the one that runs now
    [FINAL, number, frames, more, attempt]          the batch has ended; with `more`, the rest is its Dask result
    [MOVED, number, address]                        refused: the batch was on another worker before, which was lost
    [TAKEN, number]                                 refused: a kept result that the batch needs was lost
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import rhapsody.worker
from distributed import Worker, get_worker
from rhapsody.worker import BatchControl, KeptFrames, Progress, StoredBytes

from .allowance import Allowance
from .on_scheduler import BEGIN, FRAMES, LEFT_BEHIND
from .records import frames_path, machine, progress_path, remove_stale
from .room import belong, room_of

FINAL, MOVED, TAKEN = "final", "moved", "taken"

EVENT_LIMIT: Final = 128 * 1024  # bytes; a larger frame travels as the batch's result
REPORT_EVERY: Final = (
    0.05  # seconds that a start or an end waits to be reported; a batch shorter than this is one message
)
_ANSWER: Final = 60.0  # seconds that the scheduler has to answer: a connection that is cut ends before
REMEMBERED: Final = 4096  # batches that a worker remembers, more than a client has in flight on one


class BatchReporter(BatchControl):
    """Runs one batch on this worker and reports for it.

    Args:
        worker: runs the batch.
        post: sends a message to the client.
        number: of the batch.
        note: see `BatchControl`.
        kept: keeps the ends that are not reported yet; None if more batches run at a time than there are pages.
        allowance: what may begin; None where the client can read the worker's record.
    """

    def __init__(
        self,
        worker: Worker,
        post: Callable[[list[Any]], None],
        number: int,
        note: Callable[[int], object],
        kept: KeptFrames | None,
        allowance: Allowance | None,
    ) -> None:
        super().__init__(note)
        self.kept = kept
        self.allowance = allowance
        self._worker = worker
        self._post = post
        self._number = number
        self._ended: list[bytes] = []  # frames that have not been reported
        self._large: list[bytes] = []  # frames that are too large for a report
        self._started: tuple[str, float] | None = None  # the task that runs and its start, until that is reported
        self._armed = False

    def claim(self, uid: str) -> bool:
        """Begin a task unless it was withdrawn, and have its start reported should it not end soon."""
        if self.allowance is not None and not self.allowance.take():  # without the lock: it asks the worker's loop
            return False
        with self.lock:
            if not super().claim(uid):
                return False
            self._started = (uid, time.time())
            if not self._armed:
                self._armed = True
                self._worker.loop.add_callback(self._worker.loop.call_later, REPORT_EVERY, self._flush)
            return True

    def report(self, frame: bytes) -> None:
        """Keep a frame for the next message."""
        with self.lock:
            super().report(frame)
            self._started = None
            if self.kept is not None:
                self.kept.keep(frame)
            (self._large if len(frame) > EVENT_LIMIT else self._ended).append(frame)

    def finish(self, attempt: int | None, kept: StoredBytes | None) -> bytes | StoredBytes | None:
        """Report the end of the batch. Returns what is kept, or else what is too large for a report."""
        with self.lock:
            if kept is not None:
                self._ended, self._large = self._ended + self._large, []
            ended, self._ended, self._started = self._ended, [], None
        self._post([FINAL, self._number, b"".join(ended), bool(self._large), attempt])
        return b"".join(self._large) if self._large else kept

    def give_up(self) -> None:
        """Report what has ended of a batch that may not go on: the client gives the rest to other workers."""
        self._flush()
        if self._large:
            self._post([FRAMES, self._number, self._worker.address, b"".join(self._large), None, 0.0, None])

    def _flush(self) -> None:
        with self.lock:
            ended, self._ended = self._ended, []
            started, self._started = self._started, None
            self._armed = False
            begun = self.allowance and self.allowance.give_back()
        if ended or started:
            uid, since = started or (None, 0.0)
            self._post([FRAMES, self._number, self._worker.address, b"".join(ended), uid, since, begun])


class WorkerBatches:
    """The record that a worker keeps of one backend's batches."""

    def __init__(self, worker: Worker, token: str) -> None:
        self._worker = worker
        self.post: Callable[[list[Any]], None] = partial(worker.log_event, token)
        self._path = progress_path(worker.local_directory, token)
        remove_stale(self._path.parent)
        self._progress = Progress(self._path, REMEMBERED)
        self._frames_path = frames_path(worker.local_directory, token)
        pages = 2 * worker.state.nthreads  # while a batch runs, the last report of the one before may be on its way
        self._pages = deque(KeptFrames(self._frames_path, pages, page) for page in range(pages))
        self._lock = threading.Lock()
        self._running: dict[int, BatchReporter] = {}
        self._ended: dict[int, None] = {}
        self._withdrawn: set[int] = set()

    def begin(self, number: int, allowance: Allowance | None) -> BatchReporter | None:
        """Begin a batch; None if it was withdrawn."""
        with self._lock:
            if number in self._withdrawn:
                self._withdrawn.discard(number)
                return None
            note = partial(self._progress.note, self._progress.reserve(number), number)
            if (kept := self._pages.popleft() if self._pages else None) is not None:
                kept.begin(number)
            reporter = BatchReporter(self._worker, self.post, number, note, kept, allowance)
            self._running[number] = reporter
            return reporter

    def end(self, number: int) -> None:
        """Forget a batch but for its number."""
        with self._lock:
            if (kept := self._running.pop(number).kept) is not None:
                self._pages.append(kept)
            self._ended[number] = None
            while len(self._ended) > REMEMBERED:
                del self._ended[next(iter(self._ended))]

    def may_run(self, number: int, uid: str) -> bool:
        """Return whether a task of a batch that has begun runs, or may still begin."""
        reporter = self._running.get(number)
        return reporter is not None and reporter.may_run(uid)

    def withdraw(self, number: int, uids: list[str]) -> list[str] | None:
        """Withdraw tasks of a batch that has begun, or the batch.

        Returns: the tasks that will not begin; None if the batch has not begun, and now never will.
        """
        with self._lock:
            reporter = self._running.get(number)
            if reporter is None:
                if number in self._ended:
                    return []
                self._withdrawn.add(number)
                return None
        return reporter.withdraw(uids)

    def end_process_of(self, number: int, uid: str) -> None:
        """End this process by SIGKILL if this task runs; nothing begins in between."""
        reporter = self._running.get(number)
        if reporter is not None:
            with reporter.lock:
                if reporter.running == uid:
                    os.kill(os.getpid(), signal.SIGKILL)

    def close(self) -> None:
        """Remove the record."""
        with self._lock:
            self._progress.close()
            for kept in self._pages:
                kept.close()
        self._path.unlink(missing_ok=True)
        self._frames_path.unlink(missing_ok=True)


_known: dict[tuple[str, str], WorkerBatches] = {}  # by worker, since threads of one process can be several, and backend
_known_lock = threading.Lock()


def batches_of(worker: Worker, token: str) -> WorkerBatches:
    """Return this worker's record of a backend; made with the first batch."""
    key = (worker.address, token)
    with _known_lock:
        batches = _known.get(key)
        if batches is None:
            batches = _known[key] = WorkerBatches(worker, token)
        return batches


def run_batch(
    payload: bytes,
    number: int,
    token: str,
    again: int,
    need: tuple[int, int, float],
    home: str,
    stored: Sequence[StoredBytes | None] = (),
) -> bytes | bool | StoredBytes | None:
    """Run a batch in a thread of a worker.

    Args:
        payload: what `TaskBatch.encode` returned.
        number: of the batch.
        token: the backend's topic.
        again: how often a task that fails is run again, here; and how many lost workers the batch may leave behind.
        need: threads, bytes of memory and GPUs that it takes of the worker.
        home: the client's machine.
        stored: large values and kept results, which are found here as long as they are held; None for one that was
            lost.

    Returns:
        The frames that are too large for a report, or the result that is kept. False: what is not reported was
        withdrawn, and has not begun.
    """
    worker = get_worker()
    batches = batches_of(worker, token)
    left = (worker.state.tasks[worker.get_current_task()].annotations or {}).get(LEFT_BEHIND, ())
    if len(left) > again:
        batches.post([MOVED, number, left[-1]])
        return None
    if None in stored:
        batches.post([TAKEN, number])
        return None
    with room_of(worker).taken(*need) as variables:
        allowance = None if home == machine() else Allowance(partial(_may_begin, worker, token, number))
        return _run_begun(batches.begin(number, allowance), batches, payload, number, again, len(left), variables)


def _may_begin(worker: Worker, token: str, number: int, tasks: int) -> bool:
    """Ask the scheduler whether so many tasks of a batch may begin; not where it does not answer."""
    question = {"token": token, "worker": worker.address, "number": number, "tasks": tasks}

    async def ask() -> bool:
        return bool(await getattr(worker.scheduler, BEGIN)(**question))

    try:
        return asyncio.run_coroutine_threadsafe(ask(), worker.loop.asyncio_loop).result(_ANSWER)
    except (OSError, TimeoutError):  # it is cut off from the scheduler, which will take it for lost
        return False


def _run_begun(
    reporter: BatchReporter | None,
    batches: WorkerBatches,
    payload: bytes,
    number: int,
    again: int,
    left: int,
    variables: Mapping[str, str],
) -> bytes | bool | StoredBytes | None:
    if reporter is None:
        return False
    try:
        attempt: int | None = None
        if again:
            attempt = left + _run_with_retries(payload, reporter, again, variables)
        else:
            rest = rhapsody.worker.run_batch(payload, reporter.report, reporter.claim, variables)
            assert not rest, "every frame was reported"
        if reporter.allowance is not None and reporter.allowance.is_refused:
            reporter.give_up()
            return False
        return reporter.finish(attempt, rhapsody.worker.take_kept())
    finally:
        batches.end(number)


def _run_with_retries(payload: bytes, reporter: BatchReporter, retries: int, variables: Mapping[str, str]) -> int:
    """Run the one task of a batch until it does not fail, or has failed often enough. Returns how often it ran."""
    for attempt in range(1, retries + 2):
        data = rhapsody.worker.run_batch(payload, None, reporter.claim if attempt == 1 else None, variables)
        if attempt > retries or not any(map(_has_failed, rhapsody.worker.frames(data))):
            break
    if data:
        reporter.report(data)
    return attempt


def _has_failed(frame: rhapsody.worker.Frame) -> bool:
    _, kind, value, *_ = frame
    if kind == "printed":
        kind, value, _ = value
    if kind == "finished":
        exit_code, _, _, stopped, *_ = value[0]
        return bool(exit_code != 0 and not stopped)
    return kind == "raised"


def belong_to(client_pid: int, dask_worker: Worker) -> None:
    """Leave Ctrl-C to the process that started this worker, and end with it, however that ends.

    The terminal sends Ctrl-C to both. A handler, and not SIG_IGN, which the worker's executables would inherit.
    """
    belong(dask_worker)
    if os.getpid() != client_pid:  # with processes=False the worker is the client
        # A heartbeat that meets the close of the cluster; were its scheduler lost, the backend would report that.
        logging.getLogger("distributed.worker").addFilter(lambda record: "during heartbeat" not in str(record.msg))
        signal.signal(signal.SIGINT, lambda *_: None)
        rhapsody.worker.end_with(client_pid)
        if dask_worker.state.nthreads == 1:  # its tasks share the folder and the variables with nobody
            rhapsody.worker.isolate()


def forget(token: str, dask_worker: Worker) -> None:
    """Remove what a backend left on this worker, and the records of workers that died beside it."""
    with _known_lock:
        batches = _known.pop((dask_worker.address, token), None)
    if batches is not None:
        batches.close()
    for path in Path(dask_worker.local_directory).parent.glob(f"rhapsody-{token}-*"):
        if batches is None or not path.name.endswith(Path(dask_worker.local_directory).name):
            path.unlink(missing_ok=True)
