"""Runs a batch from a file into a file, for engines whose jobs are executables: `python -m rhapsody.worker`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Final

from rhapsody.protocol.frames import STARTED, encode_frame
from rhapsody.worker import executables
from rhapsody.worker.control import BatchControl
from rhapsody.worker.place import where
from rhapsody.worker.run import run_batch
from rhapsody.worker.surroundings import SURROUNDINGS

CANCEL: Final = ".cancel"  # what the file of uids to cancel adds to the name of the file of frames
_INTERVAL: Final = 0.1  # seconds between two readings of it


def run_file(source: str | Path, target: str | Path) -> None:
    """Run the batch in one file, and append to another a frame for each task that begins and for each that ends.

    A frame is in the file before the next task begins, so `rhapsody.plugin.BatchReader` can follow it, and knows after
    the loss of this process which task it ran. When this process ends, the executable that it runs ends too. It is to
    run one batch at a time and nothing else: what a task changes in the folder or `os.environ` is undone after it.

    `BatchReader.cancel` writes uids into a file beside `target`. Tasks that have not begun are skipped then, a running
    executable is stopped; for a running function this process ends by SIGKILL, after the frames of those before it.

    Args:
        source: a file that holds what `TaskBatch.encode` returned; `-` is standard input.
        target: the file of frames, made if it is not there; `-` is standard output, and what the tasks print goes to
            standard error then. Nothing can be canceled in that case.
    """
    payload = sys.stdin.buffer.read() if str(source) == "-" else Path(source).read_bytes()
    cancel: Path | None = None
    if str(target) == "-":
        output = os.dup(1)
        os.dup2(2, 1)
    else:
        output = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        cancel = Path(f"{target}{CANCEL}")
    SURROUNDINGS.isolate()
    control = _FileControl(output)
    ended = threading.Event()
    if cancel is not None:
        control.cancel(cancel)  # what was canceled before this began
        threading.Thread(target=_follow, args=(control, cancel, ended), name="rhapsody cancel", daemon=True).start()
    try:
        control.write(run_batch(payload, control.report, control.claim))
    finally:
        ended.set()
        with control.lock:
            os.close(output)
            control.output = None


class _FileControl(BatchControl):
    """Writes the frames of one batch into a file, and cancels its tasks."""

    def __init__(self, output: int) -> None:
        super().__init__()
        self.output: int | None = output

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view and self.output is not None:
            view = view[os.write(self.output, view) :]

    def claim(self, uid: str) -> bool:
        with self.lock:
            is_begun = super().claim(uid)
            if is_begun:
                self._write_mark(uid, STARTED)
            return is_begun

    def report(self, frame: bytes) -> None:
        with self.lock:
            self.write(frame)
            super().report(frame)

    def cancel(self, file: Path) -> None:
        """Cancel the tasks that a file names."""
        try:
            uids = set(file.read_text().split("\n"))
        except FileNotFoundError:
            return
        with self.lock:
            for uid in self.withdraw(uids - self._withdrawn - {""}):
                self._write_mark(uid, "skipped")
            running = self.running if self.running in uids else None
            keys = [key for key in executables.running() if key[1] == running]
            if running is not None and not keys:
                os.kill(os.getpid(), signal.SIGKILL)  # with the lock held: no other task can have begun
        executables.stop(keys)

    def _write_mark(self, uid: str, kind: str) -> None:
        now = time.time()
        self.write(encode_frame((uid, kind, None, now, now, where())))


def _follow(control: _FileControl, file: Path, ended: threading.Event) -> None:
    while not ended.wait(_INTERVAL):
        control.cancel(file)
