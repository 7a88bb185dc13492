"""Runs the functions of one unit on the pilot: `python -m rhapsody_radical.unit FOLDER`.

FOLDER holds `payload`, the encoded batch. What each task came to is appended to `frames` as it ends, so that the
results of a unit that dies are not lost, and the session hears of each task at once. A file `stop` in the folder ends
the unit before its next task.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PAYLOAD: Final = "payload"
FRAMES: Final = "frames"
STOP: Final = "stop"
SEARCH_PATH: Final = "search_path.json"  # beside the folder: where the session's process finds its modules
_LENGTH: Final = struct.Struct("<Q")


class Stopped(BaseException):
    """The session wants no further task of this unit; not an Exception, which `run_batch` would survive."""


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


def run(folder: Path) -> None:
    """Run the unit in a folder."""
    from rhapsody.worker import run_batch  # noqa: PLC0415 - after `main` has set the search path

    stop = folder / STOP
    with (folder / FRAMES).open("wb", buffering=0) as frames:  # its being there says that the first task starts

        def report(frame: bytes) -> None:
            frames.write(encode(frame))
            if stop.exists():
                raise Stopped

        rest = run_batch((folder / PAYLOAD).read_bytes(), report)
        if rest:
            frames.write(encode(rest))


def main() -> None:
    """Run the unit named on the command line."""
    folder = Path(sys.argv[1])
    known = set(sys.path)
    sys.path += [entry for entry in json.loads((folder.parent / SEARCH_PATH).read_text()) if entry not in known]
    try:
        run(folder)
    except Stopped:
        sys.exit(0)


if __name__ == "__main__":
    main()
