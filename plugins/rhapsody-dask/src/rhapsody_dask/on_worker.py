"""What runs inside Dask's workers: units, and the ledger that tells of them after a worker's death.

A worker reports through the event stream that it has with the scheduler (`Worker.log_event`), on a topic that only our
client reads. That is ordered, needs no round trip, and costs less than fetching a result: what a unit returns through
Dask is only what is too large for it. The messages, all of them lists whose first element is one of the words below:

    [FRAMES, number, address, frames, uid, time]    tasks that have ended, and the one that runs now
    [FINAL, number, frames, more, attempt]          the unit has ended; with `more`, the rest is its Dask result
    [MOVED, number, address]                        refused: the unit was on another worker before, which was lost
"""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import rhapsody.worker
from distributed import Worker, get_worker

from .on_scheduler import LEFT_BEHIND

FRAMES, FINAL, MOVED = "frames", "final", "moved"

EVENT_LIMIT: Final = 128 * 1024  # bytes; a larger frame travels as the unit's result
REPORT_EVERY: Final = 0.05  # seconds that a start or an end is held back; a unit shorter than this is one message
REMEMBERED: Final = 4096  # units that a worker remembers, more than a client has in flight on one

STALE: Final = 24 * 3600.0  # seconds

_RECORD: Final = struct.Struct("<Q8s")  # number of a unit, digest of the task that it is at


class Ledger:
    """Says which task each unit of this worker is at, in a file that outlives the worker.

    It is written before the task starts, so that after a worker's death one can tell what never began. The file is
    mapped into memory: the operating system keeps what was written, whatever ends the process.
    """

    def __init__(self, path: Path) -> None:
        sweep(path.parent)
        self._path = path
        with path.open("wb+") as file:
            file.truncate(_RECORD.size * REMEMBERED)
            self._map = mmap.mmap(file.fileno(), 0)
        self._next = 0

    def open(self, number: int) -> int:
        """Reserve a place for a unit; the oldest one's is used again."""
        place = self._next
        self._next = (place + 1) % REMEMBERED
        self.write(place, number, bytes(8))
        return place

    def write(self, place: int, number: int, task: bytes) -> None:
        """Note the task that is about to start."""
        _RECORD.pack_into(self._map, place * _RECORD.size, number, task)

    def close(self) -> None:
        """Remove the file."""
        self._map.close()
        self._path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove the ledgers of sessions that ended too abruptly to do so: old ones, whose worker's own folder is gone."""
    for path in folder.glob("rhapsody-*-worker-*"):
        worker = path.name.rpartition("-worker-")[2]
        try:
            if time.time() - path.stat().st_mtime > STALE and not (folder / f"worker-{worker}").exists():
                path.unlink()
        except OSError:  # somebody else was faster, or it belongs to somebody else
            continue


def digest(uid: str) -> bytes:
    """Return what stands for a task in a ledger."""
    return blake2b(uid.encode(), digest_size=8).digest()


def ledger_path(directory: str, token: str) -> Path:
    """Return where the worker whose scratch folder this is keeps its ledger: beside that folder, which Dask deletes."""
    folder = Path(directory)
    return folder.parent / f"rhapsody-{token}-{folder.name}"


def read_ledger(path: str) -> dict[int, bytes] | None:
    """Return the task that each unit was at, by its digest; None if the file is not here."""
    try:
        data = Path(path).read_bytes()
    except OSError:  # the worker ran on another host, or never began a unit and so never made it
        return None
    return {number: task for number, task in _RECORD.iter_unpack(data) if number}


class Unit:
    """One unit that this worker runs; reports for it."""

    def __init__(self, side: WorkerSide, number: int) -> None:
        self._side = side
        self._number = number
        self._place = side.ledger.open(number)
        self._lock = threading.Lock()
        self._withdrawn: set[str] = set()
        self._begun: set[str] = set()
        self._ended: list[bytes] = []  # frames that have not been reported
        self._large: list[bytes] = []  # frames that are too large to be
        self._running: str | None = None  # the task that runs
        self._current: tuple[str, float] | None = None  # the same and its start, until that is reported
        self._armed = False

    def claim(self, uid: str) -> bool:
        """Answer whether a task may start now, and note that it does."""
        with self._lock:
            if uid in self._withdrawn:
                return False
            self._side.ledger.write(self._place, self._number, digest(uid))
            self._begun.add(uid)
            self._running = uid
            self._current = (uid, time.time())
            if not self._armed:
                self._armed = True
                self._side.worker.loop.add_callback(self._side.worker.loop.call_later, REPORT_EVERY, self._flush)
        return True

    def report(self, frame: bytes) -> None:
        """Keep what a task reported, for the next message."""
        with self._lock:
            self._running = self._current = None
            (self._large if len(frame) > EVENT_LIMIT else self._ended).append(frame)

    def withdraw(self, uids: Iterable[str]) -> list[str]:
        """Keep tasks that have not begun from beginning. Returns which these are."""
        with self._lock:
            stopped = [uid for uid in uids if uid not in self._begun]
            self._withdrawn.update(stopped)
            return stopped

    def may_run(self, uid: str) -> bool:
        """Return whether a task runs, or still may."""
        return uid == self._running or uid not in self._begun

    def finish(self, attempt: int | None) -> bytes | None:
        """Report the end of the unit. Returns what is too large for a report."""
        with self._lock:
            ended, self._ended, self._current = self._ended, [], None
        self._side.post([FINAL, self._number, b"".join(ended), bool(self._large), attempt])
        return b"".join(self._large) if self._large else None

    def _flush(self) -> None:
        with self._lock:
            ended, self._ended = self._ended, []
            current, self._current = self._current, None
            self._armed = False
        if ended or current:
            uid, since = current or (None, 0.0)
            self._side.post([FRAMES, self._number, self._side.worker.address, b"".join(ended), uid, since])


class WorkerSide:
    """What a worker knows of one backend's units."""

    def __init__(self, worker: Worker, token: str) -> None:
        self.worker = worker
        self.post: Callable[[list[Any]], None] = partial(worker.log_event, token)
        self.ledger = Ledger(ledger_path(worker.local_directory, token))
        self._lock = threading.Lock()
        self._running: dict[int, Unit] = {}
        self._ended: dict[int, None] = {}
        self._withdrawn: set[int] = set()

    def begin(self, number: int) -> Unit | None:
        """Begin a unit; None if it was withdrawn."""
        with self._lock:
            if number in self._withdrawn:
                self._withdrawn.discard(number)
                return None
            unit = self._running[number] = Unit(self, number)
            return unit

    def end(self, number: int) -> None:
        """Forget a unit but for its number."""
        with self._lock:
            del self._running[number]
            self._ended[number] = None
            while len(self._ended) > REMEMBERED:
                del self._ended[next(iter(self._ended))]

    def may_run(self, number: int, uid: str) -> bool:
        """Return whether a task of a unit that has begun runs, or still may."""
        unit = self._running.get(number)
        return unit is not None and unit.may_run(uid)

    def withdraw(self, number: int, uids: list[str]) -> list[str] | None:
        """Withdraw tasks of a unit that has begun, or the unit.

        Returns: the tasks that will not begin; None if the unit has not begun, and now never will.
        """
        with self._lock:
            unit = self._running.get(number)
            if unit is None:
                if number in self._ended:
                    return []
                self._withdrawn.add(number)
                return None
        return unit.withdraw(uids)


_sides: dict[tuple[str, str], WorkerSide] = {}  # by worker and backend: threads of one process can be several workers
_sides_lock = threading.Lock()


def side_of(worker: Worker, token: str) -> WorkerSide:
    """Return what this worker knows of a backend; made with the first unit."""
    key = (worker.address, token)
    with _sides_lock:
        side = _sides.get(key)
        if side is None:
            side = _sides[key] = WorkerSide(worker, token)
        return side


def run_unit(payload: bytes, number: int, token: str, again: int) -> bytes | bool | None:
    """Run a unit in a thread of a worker.

    Args:
        payload: what `TaskBatch.encode` returned.
        number: of the unit.
        token: the backend's topic.
        again: how often a task that fails is run again, here; and how many lost workers the unit may leave behind.

    Returns:
        The frames that are too large for a report. False: the unit has not begun, and will not, as was promised.
    """
    worker = get_worker()
    side = side_of(worker, token)
    left = (worker.state.tasks[worker.get_current_task()].annotations or {}).get(LEFT_BEHIND, ())
    if len(left) > again:
        side.post([MOVED, number, left[-1]])
        return None
    unit = side.begin(number)
    if unit is None:
        return False
    try:
        if again:
            return unit.finish(len(left) + _run_again_and_again(payload, unit, again))
        rest = rhapsody.worker.run_batch(payload, unit.report, unit.claim)
        assert not rest, "every frame was reported"
        return unit.finish(None)
    finally:
        side.end(number)


def _run_again_and_again(payload: bytes, unit: Unit, retries: int) -> int:
    """Run the one task of a unit until it does not fail, or has failed often enough. Returns how often it ran."""
    for attempt in range(1, retries + 2):
        data = rhapsody.worker.run_batch(payload, None, unit.claim if attempt == 1 else None)
        if attempt > retries or not any(map(_has_failed, rhapsody.worker.frames(data))):
            break
    if data:
        unit.report(data)
    return attempt


def _has_failed(frame: rhapsody.worker.Frame) -> bool:
    _, kind, value, *_ = frame
    if kind == "finished":
        exit_code, _, _, stopped, *_ = value[0]
        return bool(exit_code != 0 and not stopped)
    return kind == "raised"


async def withdraw(token: str, units: Mapping[int, list[str]], dask_worker: Worker) -> dict[int, list[str] | None]:
    """Withdraw tasks on this worker; see `WorkerSide.withdraw`."""
    side = side_of(dask_worker, token)
    return {number: side.withdraw(number, uids) for number, uids in units.items()}


async def stop(token: str, session: str, units: Mapping[int, list[str]], dask_worker: Worker) -> list[str]:
    """Stop executables of units that have begun. Returns the uids of those that were running, or will not run."""
    side = side_of(dask_worker, token)

    async def stop_task(number: int, uid: str) -> bool:
        while side.may_run(number, uid):  # it may have begun and not yet started its process
            if await asyncio.to_thread(rhapsody.worker.stop, session, uid):
                return True
            await asyncio.sleep(0.02)
        return False

    tasks = [(number, uid) for number, uids in units.items() for uid in uids]
    stopped = await asyncio.gather(*(stop_task(number, uid) for number, uid in tasks))
    return [uid for (_, uid), was_running in zip(tasks, stopped, strict=True) if was_running]


def ignore_interrupts(client_pid: int) -> None:
    """Leave Ctrl-C to the process that started this worker, and that will end it; the terminal sends it to both.

    A handler, and not SIG_IGN, which the worker's executables would inherit.
    """
    if os.getpid() != client_pid:  # with processes=False the worker is the client
        signal.signal(signal.SIGINT, lambda *_: None)


def forget(token: str, dask_worker: Worker) -> None:
    """Remove what a backend left on this worker, and the ledgers of workers that died beside it."""
    with _sides_lock:
        side = _sides.pop((dask_worker.address, token), None)
    if side is not None:
        side.ledger.close()
    for path in Path(dask_worker.local_directory).parent.glob(f"rhapsody-{token}-*"):
        if side is None or not path.name.endswith(Path(dask_worker.local_directory).name):
            path.unlink(missing_ok=True)
