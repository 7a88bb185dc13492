"""Runs one function task in an interpreter of its own, from one file to another; the process of a V1 function.

It does not import Dragon, which takes a second; a function that wants to use it can.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from rhapsody import worker

from .far import extend_path

#: How the interpreter is started.
COMMAND = "from rhapsody_dragon.alone import main; main()"


def pack(payload: bytes, path: list[str]) -> bytes:
    """What the process reads: a batch, and the sys.path of the user."""
    return pickle.dumps((path, payload))


def main() -> None:
    """Run the batch of the first file, and leave its frames in the second once they are complete.

    A third argument is a gate: a named pipe of which a line is read before.
    """
    source, target, *gates = map(Path, sys.argv[1:])
    path, payload = pickle.loads(source.read_bytes())
    for gate in gates:
        with gate.open("rb", buffering=0) as pipe:
            if not pipe.read(1):  # nobody is left who could open it
                return
    extend_path(path)
    frames = worker.run_batch(payload)
    unfinished = target.with_suffix(".part")
    unfinished.write_bytes(frames)
    unfinished.rename(target)
