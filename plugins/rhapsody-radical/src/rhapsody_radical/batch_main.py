"""Runs the functions of one batch on the pilot: `python -m rhapsody_radical.batch_main [VERSION] FOLDER`.

FOLDER holds `payload`, the encoded batch. Either this process takes it, and begins, or the session has recalled it.
The outcome of each task is appended to `frames` as it ends, so that results outlive a process that dies, and the
session reads each at once. A file `cancel.json` names the tasks to stop. A waiting one is skipped. At a running one the
process halts and creates a file `halted`: the session then has RADICAL-Pilot end it, and no other task can begin in
between.

VERSION is that of the session's rhapsody-core. Where this process has another, it writes that to `other_core`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Collection, Iterable
from io import RawIOBase
from pathlib import Path
from typing import Final

from rhapsody import __version__
from rhapsody.worker import BatchControl, encode_frame, isolate, run_batch

PAYLOAD: Final = "payload"
TAKEN: Final = "taken"  # the payload of a batch that began
FRAMES: Final = "frames"
CANCEL: Final = "cancel.json"
HALTED: Final = "halted"
OTHER_CORE: Final = "other_core"
SEARCH_PATH: Final = "search_path.json"  # beside the folder: where the session's process finds its modules
_CHECK_EVERY: Final = 0.5  # seconds between two checks for canceled tasks; each is a request to a shared file system


def write_cancel(folder: Path, uids: Iterable[str]) -> None:
    """Name the tasks of a batch that are to stop."""
    path = folder / CANCEL
    written = path.with_suffix(".new")
    written.write_text(json.dumps(sorted(uids)))
    written.replace(path)


def recall(folder: Path) -> bool:
    """Keep a batch from beginning. Returns False if it has begun."""
    return _take(folder / PAYLOAD)


def take_halt(folder: Path) -> bool:
    """Whether a batch has halted; True once."""
    return _take(folder / HALTED)


def read_other_core(folder: Path) -> str | None:
    """Return the version of rhapsody-core that a batch ran with, if it is not the session's."""
    try:
        return (folder / OTHER_CORE).read_text()
    except FileNotFoundError:
        return None


def _take(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


class BatchReporter(BatchControl):
    """Claims the tasks of a batch and records their outcomes.

    The lock covers each decision together with its record, so that no task begins between a halt and its file.
    """

    def __init__(self, folder: Path, frames: RawIOBase) -> None:
        super().__init__()
        self._folder = folder
        self._frames = frames
        self._skipped: set[str] = set()

    def report(self, frame: bytes) -> None:
        """Record how the running task ended."""
        with self.lock:
            super().report(frame)
            self._frames.write(frame)

    def cancel(self, uids: Collection[str]) -> None:
        """Skip those of these tasks that wait. If one of them runs, halt: do not return."""
        with self.lock:
            for uid in self.withdraw(uids):
                if uid not in self._skipped:
                    self._skipped.add(uid)
                    self._frames.write(encode_frame((uid, "skipped", None, 0.0, 0.0, "")))
            if self.running in uids:
                (self._folder / HALTED).touch()
                threading.Event().wait()  # with the lock, until the process is ended

    def check(self) -> None:
        """Read which tasks the session wants canceled, if any."""
        try:
            canceled = (self._folder / CANCEL).read_bytes()
        except FileNotFoundError:
            return
        self.cancel(json.loads(canceled))

    def watch(self) -> None:
        """Check at intervals, for the life of the process."""
        while True:
            time.sleep(_CHECK_EVERY)
            self.check()


def run(folder: Path, core: str = __version__) -> None:
    """Run the batch in a folder, unless it was recalled; `core` is the version of the session's rhapsody-core."""
    try:
        payload = (folder / PAYLOAD).rename(folder / TAKEN).read_bytes()
    except FileNotFoundError:
        return
    if core != __version__:
        (folder / OTHER_CORE).write_text(__version__)
    with (folder / FRAMES).open(
        "wb", buffering=0
    ) as frames:  # the session takes its existence for the start of the first task
        reporter = BatchReporter(folder, frames)
        reporter.check()
        threading.Thread(target=reporter.watch, name="rhapsody-radical-watch", daemon=True).start()
        rest = run_batch(payload, reporter.report, reporter.claim)
        if rest:
            reporter.report(rest)


def main() -> None:
    """Run the batch named on the command line."""
    *core, name = sys.argv[1:]
    folder = Path(name)
    known = set(sys.path)
    sys.path += [entry for entry in json.loads((folder.parent / SEARCH_PATH).read_text()) if entry not in known]
    isolate()
    run(folder, *core)


if __name__ == "__main__":
    main()
