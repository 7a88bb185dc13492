"""The exceptions of tasks, as the program holds them."""

from __future__ import annotations

import contextlib
import inspect
import pickle
from typing import Final

from rhapsody import settings
from rhapsody.errors import SerializationError, TaskExecutionError, describe
from rhapsody.protocol.encoding import describe_exception
from rhapsody.protocol.exceptions import WHY
from rhapsody.protocol.frames import Raised

_GENERATOR: Final = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def failure_of(uid: str, error: BaseException) -> BaseException:
    """Return the exception to hold for a function that raised `error` in this process.

    What asyncio or the interpreter would act on (SystemExit, CancelledError, StopIteration, ...) is wrapped.
    """
    if not settings.keep_frames():
        _release_frames(error)
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    code = error.code if isinstance(error, SystemExit) else None
    wrapped = TaskExecutionError(
        uid,
        code if isinstance(code, int) else None,
        reason=f"the function raised {type(error).__name__}({', '.join(map(describe, error.args))})",
    )
    wrapped.__cause__ = error
    return wrapped


def _release_frames(error: BaseException) -> None:
    """Let go of the local variables of the frames that an exception came through; their lines stay.

    A task that failed keeps its exception, and that would keep all that its function had in hand.
    """
    trace = error.__traceback__
    if trace is not None and trace.tb_next is not None:
        error.with_traceback(trace.tb_next)  # without the frame of the caller, which still runs
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        left += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions
        trace = one.__traceback__
        while trace is not None:
            if not trace.tb_frame.f_code.co_flags & _GENERATOR:  # one that waits would be closed
                with contextlib.suppress(RuntimeError):  # it still runs
                    trace.tb_frame.clear()
            trace = trace.tb_next


def exception_of(uid: str, raised: Raised) -> BaseException:
    """Return the exception of a task that failed on a worker."""
    original = f"{raised.type_name}: {raised.message}"
    if raised.during == "arguments":
        text = f"task {uid}: its function or arguments could not be loaded on the worker: {original}"
        if "attribute" in original and "'__main__'" in original:
            text += "; it cannot travel by value: define it in a module that the worker can import"
        return SerializationError(text, raised.type_name, raised.trace)
    if raised.during == "result":
        text = f"task {uid}: its result cannot travel back from the worker: {original}"
        return SerializationError(text, raised.type_name, raised.trace)
    if raised.pickled is None:
        text = f"task {uid} raised {original}, which cannot be pickled"
        return SerializationError(text, raised.type_name, raised.trace)
    try:
        error = pickle.loads(raised.pickled)
    except BaseException as problem:
        text = f"task {uid} raised {original}, which cannot be loaded here ({type(problem).__name__}: {problem})"
        return SerializationError(text, raised.type_name, raised.trace)
    if not isinstance(error, BaseException):
        return SerializationError(f"task {uid} raised {original}, which is no exception here", raised.type_name)
    why = vars(error).pop(WHY, None)
    if why is not None:  # it stands in for the exception of the task
        text = f"task {uid} raised {original}, which {why}"
        for name, value in (("args", (text, raised.type_name, raised.trace)), ("original_traceback", raised.trace)):
            BaseException.__setattr__(error, name, value)
        return error
    error = failure_of(uid, error)
    notes = [*getattr(error, "__notes__", ()), f"\nOn the worker:\n{raised.trace}"]
    BaseException.__setattr__(error, "__notes__", notes)  # a frozen dataclass forbids its own add_note
    return error


def cannot_load(uid: str, what: str, error: BaseException) -> SerializationError:
    """Return the error of a task whose result, say, arrived and cannot be loaded."""
    described = describe_exception(error, what)
    return SerializationError(
        f"task {uid}: its {what} cannot be loaded here: {described.type_name}: {described.message}",
        described.type_name,
        described.trace,
    )
