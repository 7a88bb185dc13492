"""What runs inside an engine's worker process.

A backend ships `TaskBatch.encode()` to wherever its engine runs things, calls `run_batch` there, and gives what comes
back to `TaskBatch.decode`. This module needs the standard library and cloudpickle, nothing else, and starts nothing at
import.

On the wire, a batch is one pickle of `(session, functions, shared, items)`. Every function is pickled once for the
batch, and so is every argument that several of its tasks share; what remains of each task's arguments is pickled by
itself, so that one task's bad data is one task's failure, and no task sees an object that another has changed: also
what a method, a closure or a partial carries is loaded for each task. A plain function is loaded once in a process,
and what it keeps in a global stays there, as that of a module does. The way back is a sequence of frames, one for each
task, each a length and a pickle.
"""

from __future__ import annotations

import asyncio
import functools
import os
import pickle
import socket
import struct
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from types import BuiltinFunctionType, CoroutineType, FunctionType, ModuleType, TracebackType
from typing import Any, Final, NamedTuple

import cloudpickle

from . import _executable
from ._executable import Command
from ._guard import Guard

__all__ = ["Call", "Frame", "dumps", "frames", "guard", "run_batch", "run_function", "stop", "where"]

#: A function task on the wire: the function's place among the batch's functions; the pickle of `(args, kwargs)`, or
#: None for a call without any; and which of them to fill in from the batch's shared values, `(place, number)`, where
#: the place is an index of args or a key of kwargs. Plain tuples, as frames are: a class would double the price.
Call = tuple[int, bytes | None, tuple[tuple[int | str, int], ...]]
#: How one task ended, on the wire: uid, kind, value, start and end in seconds since the epoch, host and process. The
#: kind says what the value is: "value" itself, "pickle" of it, "raised" a `Raised`, "finished" a `Finished` and the
#: paths of the files of its stdout and stderr, "skipped" nothing.
Frame = tuple[str, str, Any, float, float, str]

_LENGTH: Final = struct.Struct("<Q")
_LAST_WORDS: Final = 1.0  # seconds that what functions left on a loop has to end
_PLAIN: Final = frozenset({type(None), bool, int, float, str})  # travel as they are, inside the frame
_KEPT_FUNCTIONS: Final = 256
_KEPT_BYTES: Final = 2**26  # of their pickles; there may be one more beyond them

_NOT_THERE: Final = object()
_kept: dict[bytes, Callable[..., Any]] = {}  # functions by their pickles
_waiting: dict[tuple[str, str], None] = {}  # by session and uid: tasks of batches that run here and have not started

guard: Final = Guard()  # ends the executables of this process should it die


class Raised(NamedTuple):
    """An exception on the wire: itself, where it can be pickled, and what can be said of it where it cannot."""

    pickled: bytes | None
    type_name: str
    message: str
    trace: str
    during: str  # what was being done: "run", "arguments", "result"


class AsyncFunctions:
    """Runs coroutines on an event loop of the worker's own, made with the first and kept for the others."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Wait for the coroutine that a function returned."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        task = self._loop.create_task(coroutine)
        try:
            return self._loop.run_until_complete(task)
        except BaseException:
            if not task.done():  # what was raised came from something else on the loop
                task.cancel()
            elif not task.cancelled():
                task.exception()  # seen: the loop itself passed it on (SystemExit)
            raise

    def close(self) -> None:
        """End the loop, and with it whatever the functions left on it; what does not end in a second is left."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        try:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.wait(left, timeout=_LAST_WORDS))
            loop.run_until_complete(asyncio.wait_for(loop.shutdown_asyncgens(), _LAST_WORDS))
        except TimeoutError:  # an asynchronous generator that does not let go
            pass
        finally:
            loop.close()  # which does not wait for the threads of the loop's executor

    def __enter__(self) -> AsyncFunctions:
        """Use as a context that closes."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def run_function(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], loops: AsyncFunctions
) -> Any:
    """Call a function, and await what it returns where that is a coroutine."""
    value = function(*args, **kwargs) if kwargs else function(*args)
    if type(value) is CoroutineType:
        return loops.run(value)
    return value


def run_batch(
    payload: bytes,
    report: Callable[[bytes], Any] | None = None,
    claim: Callable[[str], bool] | None = None,
) -> bytes:
    """Run the tasks of a batch, one after the other, in the calling thread.

    Args:
        payload: what `TaskBatch.encode` returned.
        report: called with each task's frame as the task ends, before the next one starts. If it raises, the
            engine is unable to carry reports: this frame and all later ones are in the returned bytes.
        claim: asked with each task's uid just before the task starts. False leaves the task out: it does not run,
            and has no frame. An engine that may run a batch twice, or must know what had started, decides here.

    Returns:
        The frames that were not reported; `TaskBatch.decode` reads both.
    """
    session, functions, shared, items = pickle.loads(payload)
    unreported: list[bytes] = []
    waiting = dict.fromkeys((session, uid) for uid, _, _ in items)
    _waiting.update(waiting)
    try:
        with AsyncFunctions() as loops:
            for uid, call, command in items:
                if claim is not None and not claim(uid):
                    continue
                if _waiting.pop((session, uid), _NOT_THERE) is _NOT_THERE:
                    now = time.time()
                    frame = (uid, "skipped", None, now, now, where())
                elif call is not None:
                    frame = _run_call(uid, call, functions, shared, loops)
                else:
                    frame = _run_command(session, uid, command)
                data = encode_frame(frame)
                if report is not None:
                    try:
                        report(data)
                        continue
                    except Exception:  # the frame is not lost: it goes back with the result
                        report = None
                unreported.append(data)
    finally:
        for key in waiting:
            _waiting.pop(key, None)
    return b"".join(unreported)


def stop(session: str, uid: str, grace: float = _executable.GRACE) -> str | None:
    """Stop a task of a batch that this process runs; from any thread of it.

    A running executable's process group gets SIGTERM, and SIGKILL after `grace` seconds; this blocks until then.

    Returns:
        "skipped": the task had not started, and will not. "stopped": it was a running executable. In both cases its
        frame says so too. None: it has ended, is a running function, or is not in this process.
    """
    key = (session, uid)
    if _waiting.pop(key, _NOT_THERE) is None:
        return "skipped"
    return "stopped" if _executable.stop([key], grace) else None


def where() -> str:
    """Return the host and process that this runs on, as `host:pid`."""
    return _where(os.getpid())  # asked each time: the process may have been forked


@functools.lru_cache(maxsize=1)
def _where(pid: int) -> str:
    return f"{socket.gethostname()}:{pid}"


def dumps(value: Any) -> bytes:
    """Pickle a value: by the fast pickler, and by cloudpickle what that cannot, or must not, pickle.

    Something of `__main__` must travel by value, since the worker's `__main__` is another.
    """
    try:
        data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:  # whatever it was, cloudpickle either can or says better why not
        data = b"__main__"
    if b"__main__" in data:
        data = cloudpickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return data


def encode_frame(frame: Frame) -> bytes:
    """Return a frame as bytes: its length, and its pickle."""
    data = pickle.dumps(frame, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


def frames(data: bytes | bytearray | memoryview) -> Iterator[Frame]:
    """Read the frames that were written one after the other; an unfinished one at the end is left out."""
    view = memoryview(data)
    start = 0
    while start + _LENGTH.size <= len(view):
        (length,) = _LENGTH.unpack_from(view, start)
        end = start + _LENGTH.size + length
        if end > len(view):
            return
        yield pickle.loads(view[start + _LENGTH.size : end])
        start = end


def _run_call(uid: str, call: Call, functions: list[bytes], shared: list[bytes], loops: AsyncFunctions) -> Frame:
    started = time.time()
    try:
        number, arguments, fill = call
        function = _load_function(functions[number])
        args: Sequence[Any] = ()
        kwargs: dict[str, Any] = {}
        if arguments is not None:
            args, kwargs = pickle.loads(arguments)
            if fill:
                args = list(args)
                for place, number in fill:
                    target: Any = args if isinstance(place, int) else kwargs
                    target[place] = pickle.loads(shared[number])
    except BaseException as error:
        return (uid, "raised", describe_exception(error, "arguments"), started, time.time(), where())
    try:
        value = run_function(function, args, kwargs, loops)
    except BaseException as error:
        return (uid, "raised", describe_exception(error, "run"), started, time.time(), where())
    ended = time.time()
    if type(value) in _PLAIN:
        return (uid, "value", value, started, ended, where())
    try:
        return (uid, "pickle", dumps(value), started, ended, where())
    except BaseException as error:
        return (uid, "raised", describe_exception(error, "result"), started, ended, where())


def _run_command(session: str, uid: str, fields: tuple[Any, ...]) -> Frame:
    started = time.time()
    command = Command(*fields)
    try:
        finished = _executable.run((session, uid), command, guard)
    except Exception as error:  # nothing that the program or its description can bring about
        return (uid, "raised", describe_exception(error, "run"), started, time.time(), where())
    value = (tuple(finished), (command.stdout_path, command.stderr_path))
    return (uid, "finished", value, started, time.time(), where())


def _load_function(pickled: bytes) -> Callable[..., Any]:
    """Load a function; one that carries no data of its own once, and any other for each task."""
    function = _kept.get(pickled)
    if function is None:
        function = pickle.loads(pickled)
        if _is_plain(function):
            if len(_kept) >= _KEPT_FUNCTIONS or sum(map(len, _kept)) > _KEPT_BYTES:
                _kept.clear()  # rare, and safe where other threads run batches too
            _kept[pickled] = function
    assert function is not None
    return function


def _is_plain(function: object) -> bool:
    """Whether it is what a `def` in a module gives, a class, or a function of an extension module.

    A method, a partial, a closure or an object that can be called carries data, which a call may change.
    """
    if isinstance(function, BuiltinFunctionType):
        return isinstance(function.__self__, ModuleType)  # not a method: list.append is of this type too
    return isinstance(function, type) or (isinstance(function, FunctionType) and not function.__closure__)


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
    try:
        pickled = dumps(error)
    except BaseException:  # its name, message and traceback travel instead
        pickled = None
    return Raised(pickled, type(error).__qualname__, message, trace, during)
