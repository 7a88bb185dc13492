"""Runs the functions of one unit on the pilot: `python -m rhapsody_radical.unit FOLDER SESSION`.

FOLDER holds `payload`, the encoded batch. What each task came to is appended to `frames` as it ends, so that the
results of a unit that dies are not lost, and the session hears of each task at once. A file `cancel` in the folder
names tasks that are not to be started any more.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

PAYLOAD: Final = "payload"
FRAMES: Final = "frames"
CANCEL: Final = "cancel.json"
SEARCH_PATH: Final = "search_path.json"  # beside the folder: where the session's process finds its modules
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
    """Name the tasks of a unit that are not to be started any more."""
    path = folder / CANCEL
    written = path.with_suffix(".new")
    written.write_text(json.dumps(sorted(uids)))
    written.replace(path)


def run(folder: Path, session: str) -> None:
    """Run the unit in a folder."""
    from rhapsody.worker import run_batch, stop  # after `main` has set the search path

    with (folder / FRAMES).open("wb", buffering=0) as frames:  # its being there says that the first task starts

        def report(frame: bytes) -> None:
            frames.write(encode(frame))
            try:
                canceled = (folder / CANCEL).read_bytes()
            except FileNotFoundError:
                return
            for uid in json.loads(canceled):
                stop(session, uid)

        rest = run_batch((folder / PAYLOAD).read_bytes(), report)
        if rest:
            frames.write(encode(rest))


def main() -> None:
    """Run the unit named on the command line."""
    folder = Path(sys.argv[1])
    known = set(sys.path)
    sys.path += [entry for entry in json.loads((folder.parent / SEARCH_PATH).read_text()) if entry not in known]
    run(folder, sys.argv[2])


if __name__ == "__main__":
    main()
