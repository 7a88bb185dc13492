"""Values and exceptions as bytes; standard library and cloudpickle only."""

from __future__ import annotations

import contextlib
import functools
import pickle
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from rhapsody.protocol.culprit import explain
from rhapsody.protocol.frames import Raised
from rhapsody.protocol.randomness import MARKS, warn_of_copies
from rhapsody.protocol.travel import Homebound, pickled_home, pickled_out


def dumps(
    value: Any,
    uids: Callable[[], Sequence[str]] = lambda: ("",),
    buffers: list[memoryview] | None = None,
) -> bytes:
    """Pickle a value for a worker: by the fast pickler, and by cloudpickle what that cannot, or must not, pickle.

    Something of `__main__` must travel by value, since the worker's `__main__` is another; so must the functions of
    `random`, which pickle would send with the module's generator.

    Args:
        value: what to pickle.
        uids: returns the tasks that load it, each for itself; asked where a random generator is in it.
        buffers: takes the contents of arrays, and the like, which are not in the pickle then; None: they are in it.
    """
    leave_out = None if buffers is None else functools.partial(_leave_out, buffers)
    try:
        data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL, buffer_callback=leave_out)
    except Exception:  # whatever it was, cloudpickle either can or says better why not
        data = b"__main__"
    if b"__main__" in data or MARKS[0] in data or MARKS[1] in data:
        if buffers:
            buffers.clear()
        data, generators = pickled_out(value, leave_out)
        if generators:
            warn_of_copies(generators, uids())
    return data


def _leave_out(buffers: list[memoryview], buffer: pickle.PickleBuffer) -> bool:
    """Take a buffer. Returns whether it is to be in the pickle all the same, since it is not contiguous."""
    try:
        buffers.append(buffer.raw())
    except BufferError:
        return True
    return False


def dumps_home(value: Any) -> bytes:
    """Pickle a value for the program, on a worker: what came from its `__main__` is referred to, and not sent back."""
    try:
        data = b"__main__" if isinstance(value, BaseException) else pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:  # as above
        data = b"__main__"
    if b"__main__" in data:
        data = pickled_home(value)
    return data


def cannot_travel(value: Any) -> str:
    """Return a sentence about the object, inside a value, that cannot be pickled for a worker; empty if unknown."""
    return explain(value, _can_travel)


def _can_travel(value: Any, pickler: Callable[[Any], bytes] = dumps) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):
            pickler(value)
    except Exception:
        return False
    return True


class _Careful(Homebound):
    """Leaves out of an exception what cannot be pickled."""

    can_travel = staticmethod(functools.partial(_can_travel, pickler=dumps_home))


def _pickled_error(error: BaseException) -> bytes | None:
    for pickler in (Homebound, _Careful):
        with contextlib.suppress(BaseException):  # whatever it was: less of it may travel
            return pickled_home(error, pickler)
    return None  # its name, message and traceback travel instead


def describe_exception(error: BaseException, during: str) -> Raised:
    """Make an exception ready to travel."""
    try:
        trace = "".join(traceback.format_exception(error))
    except BaseException as failure:  # the exception is code of the user's too
        trace = f"(its traceback cannot be shown: {type(failure).__name__})"
    try:
        message = str(error)
    except BaseException as failure:
        message = f"(its message cannot be shown: {type(failure).__name__})"
    return Raised(_pickled_error(error) if during == "run" else None, type(error).__qualname__, message, trace, during)
