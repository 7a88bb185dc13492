"""What runs inside an engine's worker process.

A backend ships `TaskBatch.encode()` to wherever its engine runs things, calls `run_batch` there, and gives what comes
back to `TaskBatch.decode`. This module needs the standard library and cloudpickle (and psutil on macOS), nothing else,
and starts nothing at import.

On the wire, a batch is one pickle of `(wire version, version of rhapsody-core, session, items, common)`. An item is a
task's uid, the name of its kind, and what the encoder of that kind made of it; `common` has for each kind what its
items have in common. Of functions, each is pickled once for the batch, and so is every argument that several of its
tasks share; what remains of each task's arguments is pickled by itself, so that one task's bad data is one task's
failure, and no task sees an object that another has changed: also what a method, a closure or a partial carries is
loaded for each task. A plain function is loaded once in a process, and what it keeps in a global stays there, as that
of a module does. The way back is a sequence of frames, one for each task, each a length, the wire version and a pickle.

A batch or frame of another wire version, or of an unknown kind, becomes a ProtocolError that names the versions of both
ends.
"""

from __future__ import annotations

from rhapsody.protocol.encoding import describe_exception, dumps
from rhapsody.protocol.frames import Call, Frame, Raised, encode_frame, frames
from rhapsody.protocol.kept import Kept, load_result, take_kept
from rhapsody.protocol.shared import StoredBytes
from rhapsody.worker.control import BatchControl
from rhapsody.worker.files import run_file
from rhapsody.worker.follow import end_with
from rhapsody.worker.functions import AsyncFunctions, run_function
from rhapsody.worker.initialize import initialize
from rhapsody.worker.place import where
from rhapsody.worker.progress import KeptFrames, Progress, kept_frames, read_progress, whole_frames
from rhapsody.worker.run import run_batch, stop
from rhapsody.worker.runners import guard
from rhapsody.worker.subreaper import Subreaper, descendants
from rhapsody.worker.surroundings import SURROUNDINGS

isolate = SURROUNDINGS.isolate

__all__ = [
    "AsyncFunctions",
    "BatchControl",
    "Call",
    "Frame",
    "Kept",
    "KeptFrames",
    "Progress",
    "Raised",
    "StoredBytes",
    "Subreaper",
    "descendants",
    "describe_exception",
    "dumps",
    "encode_frame",
    "end_with",
    "frames",
    "guard",
    "initialize",
    "isolate",
    "kept_frames",
    "load_result",
    "read_progress",
    "run_batch",
    "run_file",
    "run_function",
    "stop",
    "take_kept",
    "where",
    "whole_frames",
]
