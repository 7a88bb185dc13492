"""What runs one unit of Dragon's Batch: in a worker of Batch, or in a process that Batch starts for it.

A worker of Batch asks the user's side before it begins a unit. So a cancel that meets a waiting unit is final the
moment it is said, RUNNING means that a worker runs it, and when a worker dies it is known what ran on it.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rhapsody import worker

from .far import extend_path, stop_task
from .messages import HEAD, Kind, new_queue, send

#: Seconds for which a worker that has introduced itself stays busy, so that the next one introduces another.
BUSY_SECONDS: Final = 0.1
#: Queues of this process on which units were answered, and the claims that name them; free for the next unit.
_answers: Final[list[tuple[Any, bytes]]] = []


def introduce(outbox: Any) -> int:
    """Say that this worker of Batch is there, so that its death is noticed also where it runs no function.

    Returns by what Dragon knows it.
    """
    answers, claim = _take_answers()
    send(outbox, 0, 0, Kind.WORKER, claim)
    _answers.append((answers, claim))
    time.sleep(BUSY_SECONDS)
    return _who()


def run_wanted(unit: int, payload: bytes, outbox: Any, is_program: bool) -> None:
    """Run one unit if it is still wanted, and report its frames; the body of a Batch function.

    Args:
        unit: its number.
        payload: the encoded batch.
        outbox: where frames go.
        is_program: whether requests to stop it are to be served meanwhile. A function needs none: Batch interrupts it.
    """
    answers, claim = _take_answers()
    send(outbox, 0, unit, Kind.CLAIM, claim)
    if _answer(answers, unit) is Kind.RUN:
        listener = threading.Thread(target=_listen, args=(answers,), daemon=True) if is_program else None
        if listener is not None:
            listener.start()
        _run(unit, payload, outbox)
        if listener is not None:
            send(answers, 0, unit, Kind.STOP)
            listener.join()
    # Not reached if Batch interrupts the function: then the queue may hold an answer, and serves no other unit.
    _answers.append((answers, claim))


def run_alone(unit: int, payload: bytes, outbox: Any, path: Sequence[str], sign: str) -> None:
    """Say that one unit begins, run it and report its frames; the body of a process of its own.

    Args:
        unit: its number.
        payload: the encoded batch.
        outbox: where frames go.
        path: the user's sys.path.
        sign: a file that says so too, to who may no longer read what is sent.
    """
    extend_path(path)
    Path(sign).touch()
    send(outbox, 0, unit, Kind.CLAIM)
    _run(unit, payload, outbox)


def _run(unit: int, payload: bytes, outbox: Any) -> None:
    rest = worker.run_batch(payload, lambda frame: send(outbox, 0, unit, Kind.FRAME, frame))
    if rest:
        send(outbox, 0, unit, Kind.FRAME, rest)


def _take_answers() -> tuple[Any, bytes]:
    if _answers:
        return _answers.pop()
    answers = new_queue(8)
    return answers, pickle.dumps((answers, _who(), os.getpid(), os.getppid()))


def _who() -> int:
    from dragon.infrastructure.parameters import this_process

    return int(this_process.my_puid)


def _answer(answers: Any, unit: int) -> Kind:
    """Wait for the answer; what was meant for an earlier unit may come first."""
    while True:
        _, number, kind = HEAD.unpack_from(answers.get())
        if number == unit and kind in (Kind.RUN, Kind.SKIP):
            return Kind(kind)


def _listen(answers: Any) -> None:
    """Stop the program when asked to, until it is over."""
    while True:
        message = answers.get()
        _, _, kind = HEAD.unpack_from(message)
        if kind == Kind.STOP:
            return
        if kind == Kind.TERMINATE:
            stop_task(message[HEAD.size :])
