"""Runs the functions of one unit on the pilot: `python -m rhapsody_radical.unit FOLDER`.

FOLDER holds `payload`, the encoded batch. Either the unit takes it, and begins, or the session has recalled it. What
each task came to is appended to `frames` as it ends, so that the results of a unit that dies are not lost, and the
session hears of each task at once. A file `cancel.json` names tasks that are to stop: one that waits is passed over;
at one that runs the unit halts, and says so by a file `halted`: the session has RADICAL-Pilot end it, and no other
task can begin in between.
"""

from __future__ import annotations

import json
import struct
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from io import RawIOBase
from pathlib import Path
from typing import Final

PAYLOAD: Final = "payload"
TAKEN: Final = "taken"  # the payload of a unit that began
FRAMES: Final = "frames"
CANCEL: Final = "cancel.json"
HALTED: Final = "halted"
SEARCH_PATH: Final = "search_path.json"  # beside the folder: where the session's process finds its modules
_HEED_EVERY: Final = 0.5  # seconds between looks for canceled tasks; a shared file system feels each of them
_LENGTH: Final = struct.Struct("<Q")


def encode(frame: bytes) -> bytes:
    """Return a frame as it is written to the file."""
    return _LENGTH.pack(len(frame)) + frame


def complete(data: bytes, start: int = 0) -> Iterator[tuple[bytes, int]]:
    """Yield each whole frame and where it ends; the one that is still being written is left for later."""
    while start + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, start)
        end = start + _LENGTH.size + length
        if end > len(data):
            return
        yield data[start + _LENGTH.size : end], end
        start = end


def write_cancel(folder: Path, uids: Iterable[str]) -> None:
    """Name the tasks of a unit that are to stop."""
    path = folder / CANCEL
    written = path.with_suffix(".new")
    written.write_text(json.dumps(sorted(uids)))
    written.replace(path)


def recall(folder: Path) -> bool:
    """Keep a unit from beginning. Returns False if it has begun."""
    return _take(folder / PAYLOAD)


def take_halt(folder: Path) -> bool:
    """Return, once, that a unit has halted."""
    return _take(folder / HALTED)


def _take(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


class Unit:
    """What a unit does with its tasks. Each decision is taken, and written down, before the next can be."""

    def __init__(self, folder: Path, frames: RawIOBase) -> None:
        self._folder = folder
        self._frames = frames
        self._lock = threading.Lock()
        self._decided: set[str] = set()  # what has begun, and what was passed over
        self._running: str | None = None

    def claim(self, uid: str) -> bool:
        """Begin a task, unless it was passed over."""
        with self._lock:
            if uid in self._decided:
                return False
            self._decided.add(uid)
            self._running = uid
        return True

    def report(self, frame: bytes) -> None:
        """Write down how the running task ended."""
        with self._lock:
            self._running = None
            self._frames.write(encode(frame))

    def heed(self, canceled: Collection[str]) -> None:
        """Pass over those of these tasks that wait. If one of them runs, halt: do not return."""
        from rhapsody.worker import encode_frame  # after `main` has set the search path

        with self._lock:
            for uid in canceled:
                if uid not in self._decided:
                    self._frames.write(encode(encode_frame((uid, "skipped", None, 0.0, 0.0, ""))))
                    self._decided.add(uid)
            if self._running in canceled:
                (self._folder / HALTED).touch()
                threading.Event().wait()  # with the lock, until the process is ended

    def look(self) -> None:
        """Heed what the session has written, if it has."""
        try:
            canceled = (self._folder / CANCEL).read_bytes()
        except FileNotFoundError:
            return
        self.heed(json.loads(canceled))

    def watch(self) -> None:
        """Look every now and then, for the life of the process."""
        while True:
            time.sleep(_HEED_EVERY)
            self.look()


def run(folder: Path) -> None:
    """Run the unit in a folder, unless it was recalled."""
    from rhapsody.worker import run_batch  # after `main` has set the search path

    try:
        payload = (folder / PAYLOAD).rename(folder / TAKEN).read_bytes()
    except FileNotFoundError:
        return
    with (folder / FRAMES).open("wb", buffering=0) as frames:  # its being there says that the first task starts
        unit = Unit(folder, frames)
        unit.look()
        threading.Thread(target=unit.watch, name="rhapsody-radical-watch", daemon=True).start()
        rest = run_batch(payload, unit.report, unit.claim)
        if rest:
            unit.report(rest)


def main() -> None:
    """Run the unit named on the command line."""
    folder = Path(sys.argv[1])
    known = set(sys.path)
    sys.path += [entry for entry in json.loads((folder.parent / SEARCH_PATH).read_text()) if entry not in known]
    run(folder)


if __name__ == "__main__":
    main()
