"""What runs inside Dragon's processes: a worker of the group, which runs batches and reports of them."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, NoReturn

from rhapsody import __version__, worker
from rhapsody.worker import BatchControl, KeptFrames, Progress, kept_frames

from .messages import HEAD, Joiner, Kind, received, send

#: Frames are held back for this long, in seconds,
HOLD_SECONDS: Final = 0.005
#: or until there are this many bytes of them.
HOLD_BYTES: Final = 2**18
#: Seconds between two tries to stop an executable whose process has yet to start.
STOP_SECONDS: Final = 0.02


class WorkerRecord(Progress):
    """What the workers of this node have begun and ended, in memory that outlives them and has no name to be left over.

    Should one die, the user's side reads there which tasks had begun, and how they ended.
    """

    def __init__(self, workers: int) -> None:
        self._fds = [os.memfd_create(f"rhapsody {content}") for content in ("progress", "frames")]
        progress, frames = (f"/proc/{os.getpid()}/fd/{fd}" for fd in self._fds)
        self.paths = (progress, frames)
        super().__init__(progress, workers)

    def kept(self, batch: int) -> bytes:
        """Return the frames that the worker of a batch has kept."""
        return kept_frames(self.paths[1], batch)

    def close(self) -> None:
        """Let the memory go."""
        super().close()
        for fd in self._fds:
            os.close(fd)


class Reports:
    """Sends what a worker reports: the first frame at once, those that follow closely together.

    Every message that arrives makes the user's interpreter change threads, so a message for each of many short tasks
    would cost more than the tasks. What is held back is kept in the record that outlives the worker. Without a record,
    as on another node than the user's process, nothing is held back, and each start is reported.

    Whoever holds `lock` keeps tasks of this worker from beginning, and anything from being sent. It is reentrant.
    """

    def __init__(self, number: int, outbox: Any, record: tuple[str, str] | None, count: int = 1) -> None:
        self.lock = threading.RLock()
        self.holds_back = record is not None
        self._number, self._outbox = number, outbox
        self._progress = None if record is None else Progress(record[0], count)
        self._kept = None if record is None else KeptFrames(record[1], count, number)
        self._held: list[bytes] = []  # frames of the latest batch
        self._size = 0
        self._sent_at = 0.0
        self._waiting = threading.Event()
        self._latest = BatchReporter(self, 0)
        if self.holds_back:
            threading.Thread(target=self._flush_late, name="rhapsody-reports", daemon=True).start()

    def batch(self, batch: int) -> BatchReporter | None:
        """Return the reporter of a batch that runs, or has yet to arrive; None if it is over."""
        with self.lock:
            if batch > self._latest.batch:
                note = None if self._progress is None else partial(self._progress.note, self._number, batch)
                if self._kept is not None:
                    self._kept.begin(batch)
                self._latest = BatchReporter(self, batch, note)
            return self._latest if batch == self._latest.batch else None

    def put(self, frame: bytes) -> None:
        """Send a frame of the latest batch, now or soon."""
        with self.lock:
            if self._kept is not None:
                self._kept.keep(frame)
            self._held.append(frame)
            self._size += len(frame)
            if not self.holds_back or self._size > HOLD_BYTES or time.monotonic() - self._sent_at > HOLD_SECONDS:
                self.flush()
            else:
                self._waiting.set()

    def send(self, batch: int, kind: Kind, data: bytes = b"") -> None:
        """Send a message."""
        with self.lock:
            send(self._outbox, self._number, batch, kind, data)

    def flush(self) -> None:
        """Send what is held back."""
        with self.lock:
            held, self._held, self._size = self._held, [], 0
            if held:
                self.send(self._latest.batch, Kind.FRAME, b"".join(held))
                self._sent_at = time.monotonic()

    def die(self) -> NoReturn:
        """End this process, whatever it runs: while nothing is being sent, so that no queue is left locked."""
        with self.lock:
            self.flush()
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("SIGKILL ends a process")

    def _flush_late(self) -> None:
        """Send what no later frame has taken along."""
        while True:
            self._waiting.wait()
            time.sleep(HOLD_SECONDS)
            self._waiting.clear()
            self.flush()


class BatchReporter(BatchControl):
    """Runs one batch, and reports of it; see `BatchControl`."""

    def __init__(self, reports: Reports, batch: int, note: Callable[[int], object] | None = None) -> None:
        super().__init__(note)
        self.lock = reports.lock  # one for all batches: while a task is kept from beginning, nothing is being sent
        self.batch = batch
        self._reports = reports

    def claim(self, uid: str) -> bool:
        """Begin a task, unless it was canceled."""
        with self.lock:
            if not super().claim(uid):
                return False
            if not self._reports.holds_back:
                self._reports.send(self.batch, Kind.BEGUN, uid.encode())
            return True

    def report(self, frame: bytes) -> None:
        """Take the frame of the task that has just ended."""
        with self.lock:
            super().report(frame)
            self._reports.put(frame)

    def cancel(self, uid: str, kills: bool) -> bool:
        """Stop a task that the user's side believes to be here.

        What has not begun is left out, which is reported. With `kills`, a function that runs is ended with this
        process. Returns whether it is another task that runs, an executable.
        """
        with self.lock:
            if self.withdraw([uid]):
                self._reports.send(self.batch, Kind.LEFT_OUT, uid.encode())
            elif uid == self.running:
                if kills:
                    self._reports.die()
                return True
            return False

    def give_back(self, uids: Iterable[str]) -> None:
        """Keep tasks from beginning, and report those that have not."""
        with self.lock:
            waiting = [uid for uid in uids if uid not in self._begun]
            if self._asked and self.running is None:  # the next is believed to run once the last frame is read
                waiting = waiting[1:]
            if never := self.withdraw(waiting):
                self._reports.send(self.batch, Kind.GIVEN_BACK, "\n".join(never).encode())

    def end(self, rest: bytes) -> None:
        """Send what is held back; and that the batch is over, where a task that began has no frame."""
        with self.lock:
            if rest:
                self._reports.put(rest)
            self._reports.flush()
            if rest or self.running is not None:
                self._reports.send(self.batch, Kind.END)


def work(
    number: int,
    inbox: Any,
    control: Any,
    outbox: Any,
    record: tuple[str, str] | None,
    count: int,
    path: Sequence[str],
) -> None:
    """Run batches until asked to leave; the body of a worker. `path` is the user's sys.path."""
    prepare(path)
    worker.isolate()
    reports = Reports(number, outbox, record, count)
    reports.send(0, Kind.READY, json.dumps([os.getpid(), os.getppid(), __version__]).encode())
    threading.Thread(target=_listen, args=(control, reports), name="rhapsody-control", daemon=True).start()
    for _, batch, _, data in received(inbox, Joiner()):
        reporter = reports.batch(batch)
        assert reporter is not None, "batches come in the order of their numbers"
        reporter.end(worker.run_batch(bytes(data), reporter.report, reporter.claim))


def prepare(path: Sequence[str]) -> None:
    """Make the user's modules importable, after the interpreter's own; and standard input end at once.

    Dragon's own (0.15) is a pipe into which nobody writes and that nobody closes: who reads it waits for ever.
    """
    sys.path.extend(entry for entry in path if entry not in sys.path)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - open for the life of the process


def task_name(session: str, uid: str) -> bytes:
    """What a request to cancel a task says."""
    return f"{session}\n{uid}".encode()


def _listen(control: Any, reports: Reports) -> None:
    """Serve requests about what runs, for the worker's life."""
    while True:
        message = control.get()
        _, batch, kind = HEAD.unpack_from(message)
        if kind == Kind.DIE:
            reports.die()
        reporter = reports.batch(batch)
        if kind == Kind.GIVE_BACK:
            if reporter is not None:
                reporter.give_back(message[HEAD.size :].decode().split("\n"))
            continue
        session, uid = message[HEAD.size :].decode().split("\n", 1)
        if reporter is not None and reporter.cancel(uid, kills=kind == Kind.KILL):
            # The end is waited for elsewhere, so that the next request is served meanwhile.
            threading.Thread(target=_stop, args=(session, uid, reporter), daemon=True).start()


def _stop(session: str, uid: str, reporter: BatchControl) -> None:
    """Stop an executable, whose process may have yet to start."""
    while reporter.may_run(uid) and not worker.stop(session, uid):
        time.sleep(STOP_SECONDS)
