"""How one task ended, as bytes; standard library only."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from rhapsody.protocol.version import UNVERSIONED, WIRE_VERSION, other_frame

#: What a function task asks for of its worker, on the wire: its seed, its working folder, the variables that are set
#: (or, where the value is None, removed) while it runs, and its trace. Each None where it asks for nothing.
Setting = tuple[tuple[int, ...] | None, str | None, dict[str, str | None] | None, tuple[str, str] | None, bool]

#: A function task on the wire: the function's index among the batch's functions; the pickle of `(args, kwargs)`, or
#: None for a call without any; which of them to fill in from the batch's shared values, `(key, number)`, where the key
#: is an index of args or a name of kwargs; and what it asks for of its worker. Plain tuples, as frames are: a class
#: would double the price.
Call = tuple[int, bytes | None, tuple[tuple[int | str, int], ...], Setting | None]

#: How one task ended, on the wire: uid, kind, value, start and end in seconds since the epoch, host and process. The
#: kind says what the value is: "value" itself, "pickle" of it, "raised" a `Raised`, "finished" a `Finished` and the
#: paths of the files of its stdout and stderr, "printed" another kind with its value, and the texts that the function
#: has printed to stdout and stderr, "skipped" nothing. On reading, "foreign" stands for a frame of another
#: wire version, and its value is that.
Frame = tuple[str, str, Any, float, float, str]
FOREIGN: Final = "foreign"
_HEADER: Final = struct.Struct("<QH")  # length of what follows it, which others read too; wire version
_VERSION_SIZE: Final = 2
_LENGTH_SIZE: Final = 8
STARTED: Final = "started"  # kind of the frame of a task that began; only `rhapsody.worker.run_file` writes it


class Raised(NamedTuple):
    """An exception on the wire: itself, where it can be pickled, and what can be said of it where it cannot."""

    pickled: bytes | None
    type_name: str
    message: str
    trace: str
    during: str  # what was being done: "run", "arguments", "result"


def encode_frame(frame: Frame) -> bytes:
    """Return a frame as bytes: the length of what follows, the wire version, and its pickle."""
    data = pickle.dumps(frame, pickle.HIGHEST_PROTOCOL)
    return _HEADER.pack(len(data) + _VERSION_SIZE, WIRE_VERSION) + data


def frames(data: bytes | bytearray | memoryview) -> Iterator[Frame]:
    """Read the frames that were written one after the other; an unfinished one at the end is left out.

    Raises:
        ProtocolError: a frame of another wire version that does not even say whose it is.
    """
    view = memoryview(data)
    start = 0
    while start + _HEADER.size <= len(view):
        length, version = _HEADER.unpack_from(view, start)
        end = start + _LENGTH_SIZE + length
        if end > len(view):
            return
        if version == WIRE_VERSION:
            yield pickle.loads(view[start + _HEADER.size : end])
        else:
            yield _foreign(view[start + _LENGTH_SIZE : end], version)
        start = end


def _foreign(data: memoryview, version: int) -> Frame:
    """Return a frame that stands for one of another wire version, of which the uid alone can be read."""
    try:
        uid, *_ = pickle.loads(data if version == UNVERSIONED else data[_VERSION_SIZE:])
    except Exception as error:  # it holds what this version does not have
        raise other_frame(version) from error
    return (uid, FOREIGN, version, 0.0, 0.0, "")
