"""What came of tasks, as it is kept: pickles of results, and texts of errors."""

from __future__ import annotations

import pickle
import traceback
from types import TracebackType
from typing import Any, Final

import cloudpickle

from rhapsody.errors import describe
from rhapsody.model.task import ComputeTask
from rhapsody.observers.content import ATOMS

STREAM: Final = 1024 * 1024  # characters of an executable's output that are kept, from its end
Kept = bytes | str | None  # the pickle of a result, or the reason why there is none


def keep(task: ComputeTask) -> Kept | TracebackType:
    """Return what the program may change of an ended task before it is written."""
    if task.exception is not None:
        return task.exception.__traceback__
    return None if type(task.return_value) in ATOMS else pickled(task.return_value)


def pickled(value: Any) -> bytes | str:
    """Return the pickle of a result, or the reason where it has none."""
    try:
        return pickle.dumps(value, protocol=5)
    except Exception:  # a class or function of the script's, say: it travels by value
        try:
            return bytes(cloudpickle.dumps(value, protocol=5))
        except Exception as error:
            return f"{type(value).__qualname__} cannot be pickled: {describe(error)}"


def error_of(task: ComputeTask, kept: object) -> tuple[str, str, str]:
    """Return the type of a task's error, its message and its traceback as text."""
    error = task.exception
    assert error is not None
    trace = kept if isinstance(kept, TracebackType) else None
    text = "".join(traceback.TracebackException(type(error), error, trace).format())
    try:
        line = str(error)[:2000]
    except Exception as problem:  # its text is code of the user's
        line = f"<its text cannot be had: {type(problem).__name__}>"
    return type(error).__qualname__, line, text


def streams_of(task: ComputeTask) -> tuple[str | None, str | None, str | None]:
    """Return the ends of an executable's output, and what is missing of it, if anything."""
    ends = [text[-STREAM:] if text else None for text in (task.stdout, task.stderr)]
    cut = any(text is not None and len(text) > STREAM for text in (task.stdout, task.stderr))
    return ends[0], ends[1], f"its output is longer than {STREAM} characters; this is its end" if cut else None
