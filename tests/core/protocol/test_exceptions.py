"""The exceptions of tasks come home whole: class, arguments, attributes, notes, cause and context."""

from __future__ import annotations

import gc
import pickle
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from rhapsody.api import ComputeTask, SerializationError, Session
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.protocol.encoding import describe_exception
from rhapsody.protocol.failures import exception_of

KINDS = ["threads", "processes"]


class Many(Exception):
    """Its constructor takes more than it passes on, and says something else than it was given."""

    def __init__(self, code: int, text: str, *, where: str) -> None:
        super().__init__(f"{text} at {where}")
        self.code = code
        self.where = where


class Wrapping(Exception):
    """Adds words to those that it is given, each time it is made."""

    def __init__(self, text: str) -> None:
        super().__init__(f"wrapped: {text}")


class Slotted(Exception):
    """Keeps an attribute in a slot."""

    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        self.code = code


class Held(ValueError):
    """Holds what cannot be pickled, and something that can."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock, self.code = threading.Lock(), 7


class OwnSystemError(OSError):
    """A subclass of a class of the interpreter's that keeps more than its arguments."""

    def __init__(self, code: int, path: str) -> None:
        super().__init__(code, "no such thing", path)


class Reduced(Exception):
    """Says itself how it is pickled, and cannot be loaded so."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> Any:
    raise RuntimeError("not here")


def _raise(make: Callable[[], BaseException]) -> None:
    raise make()


def _chain() -> None:
    try:
        try:
            raise Many(1, "first", where="here")
        except Many:
            raise KeyError("second")  # noqa: B904  # its context is the matter
    except KeyError as error:
        third = ValueError("third")
        third.add_note("a note")
        raise third from error


def travelled(error: BaseException) -> Any:
    """Return an exception as a program gets it from a worker."""
    return exception_of("task", describe_exception(error, "run"))


async def failed(kind: str, function: Callable[..., Any], *args: Any) -> Any:
    async with Session(backends=[ConcurrentExecutionBackend(executor=kind, max_workers=1)]) as session:
        task = ComputeTask(function=function, args=args)
        await session.submit_tasks([task])
        await session.wait_tasks(timeout=60)
    assert task.exception is not None
    return task.exception


@pytest.mark.parametrize("kind", KINDS)
async def test_chains_and_notes_come_home(kind: str) -> None:
    """`raise A from B` keeps its cause, its context and theirs, and its notes."""
    error = await failed(kind, _chain)
    assert (type(error), error.args, error.__notes__[0]) == (ValueError, ("third",), "a note")
    assert error.__cause__ is error.__context__
    assert (type(error.__cause__), error.__suppress_context__) == (KeyError, True)
    assert error.__cause__.__suppress_context__ is False
    assert vars(error.__cause__.__context__) == {"code": 1, "where": "here"}
    assert "in _chain" in "".join(traceback.format_exception(error))


def test_constructors_are_not_called_again() -> None:
    """Exceptions whose constructors take other arguments than they pass on are what they were."""
    error = travelled(Many(3, "it broke", where="there"))
    assert (type(error), str(error), error.code, error.where) == (Many, "it broke at there", 3, "there")
    assert str(travelled(Wrapping("x"))) == "wrapped: x"
    assert travelled(Slotted(4)).code == 4


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "gone", "/x"),
        OwnSystemError(2, "/x"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        ImportError("no", name="x", path="/x"),
        SyntaxError("bad", ("f", 1, 2, "text")),
        ExceptionGroup("both", [ValueError(1), Many(1, "x", where="y")]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_builtin_exceptions_keep_their_fields(error: BaseException) -> None:
    """What the interpreter's own classes keep beside their arguments is there."""
    came = travelled(error)
    fields = ("args", "filename", "errno", "start", "reason", "name", "path", "lineno", "message")
    assert (type(came), str(came)) == (type(error), str(error))
    for field in fields:
        if hasattr(error, field) and not isinstance(error, BaseExceptionGroup):
            assert getattr(came, field) == getattr(error, field)
    if isinstance(error, BaseExceptionGroup):
        assert vars(came.exceptions[1]) == vars(error.exceptions[1])


@pytest.mark.parametrize("kind", [Held, Reduced])
def test_a_stand_in_is_caught_by_the_class(kind: type[Exception]) -> None:
    """What cannot be rebuilt is an instance of a subclass of its class, and a SerializationError."""
    came = travelled(kind("own words"))
    with pytest.raises(kind) as caught:
        raise came
    assert isinstance(caught.value, SerializationError)
    assert "own words" in str(came)
    assert came.original_type == kind.__name__
    assert getattr(came, "code", 7) == 7
    again = pickle.loads(pickle.dumps(came))
    assert (type(again), str(again)) == (type(came), str(came))


def test_a_cause_that_cannot_travel_spoils_no_other() -> None:
    """The cause is stood in for; the exception itself is whole."""
    error = Many(1, "x", where="y")
    error.__cause__ = Held("deep")
    came = travelled(error)
    assert (type(came), came.code) == (Many, 1)
    assert isinstance(came.__cause__, Held)
    assert came.__cause__.code == 7


@pytest.mark.parametrize("kind", KINDS)
async def test_recursion_errors_come_home(kind: str) -> None:
    """A function without an end raises RecursionError, and a chain of thousands of contexts travels in part."""

    def recurse() -> None:
        recurse()

    def contexts() -> None:
        error = ValueError(0)
        for number in range(5000):
            later = ValueError(number)
            later.__context__, error = error, later
        raise error

    assert type(await failed(kind, recurse)) is RecursionError
    assert (await failed(kind, contexts)).args == (4999,)


class Big:
    """Can be watched."""


@pytest.mark.parametrize("keep", [False, True])
async def test_failed_tasks_release_locals(keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The traceback of a failed task has its lines, and the local variables only where they were asked for."""
    if keep:
        monkeypatch.setenv("RHAPSODY_KEEP_FRAMES", "1")
    watched: list[weakref.ref[Big]] = []

    def work() -> None:
        held = Big()
        watched.append(weakref.ref(held))
        raise ValueError("x")

    error = await failed("threads", work)
    gc.collect()
    assert (watched[0]() is not None) is keep
    assert "raise ValueError" in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("kind", KINDS)
async def test_sys_exit_keeps_its_code(kind: str) -> None:
    """`sys.exit(3)` has exit_code 3."""
    assert (await failed(kind, sys.exit, 3)).exit_code == 3
