"""The functions that the suite runs as tasks. They import the standard library and nothing else, on any worker."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

_VARIABLE: ContextVar[str] = ContextVar("_VARIABLE", default="")
_LIMIT = 300.0  # seconds after which a task that nobody lets end does so by itself


class OwnError(Exception):
    """An exception of the task's own, which carries data."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text, number)
        self.number = number


class WordyError(Exception):
    """An exception whose constructor takes other arguments than it passes on."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(f"{text} ({number})")
        self.number = number


class ClosedError(Exception):
    """An exception that cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class Counted:
    """Data that counts how often it is pickled, and arrives as bytes."""

    def __init__(self, size: int) -> None:
        self.data = bytes(size)
        self.pickled = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as bytes."""
        self.pickled += 1
        return bytes, (self.data,)


def count_up(data: bytearray) -> int:
    """Add 1 to the first byte, and return it."""
    data[0] += 1
    return data[0]


def say(text: str) -> str:
    """Print to both streams."""
    print(text)  # noqa: T201  # this is what is tested
    print(text.upper(), file=sys.stderr)  # noqa: T201  # as is this
    return text


def echo(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what was given."""
    return args, kwargs


def same(value: Any) -> Any:
    """Return the value."""
    return value


def surroundings(names: list[str]) -> tuple[str, list[str | None]]:
    """Return the working folder, and the values of environment variables."""
    return str(Path.cwd()), [os.environ.get(name) for name in names]


def hold(book: str, name: str, seconds: float) -> None:
    """Write into a file that it has begun, with its GPUs, and after some seconds that it has ended."""
    for line in (f"+ {name} {os.environ.get('CUDA_VISIBLE_DEVICES', '')}", f"- {name}"):
        with Path(book).open("a") as file:
            file.write(f"{line}\n")
        if line.startswith("+"):
            time.sleep(seconds)


def leave_behind(folder: str, name: str) -> None:
    """Change to a folder and set a variable, and do not undo it."""
    os.chdir(folder)
    os.environ[name] = "left behind"


def set_variable(text: str) -> str:
    """Set a context variable; return what it was."""
    before = _VARIABLE.get()
    _VARIABLE.set(text)
    return before


def fail_at_first(book: str, attempts: int) -> int:
    """Return how often it ran, counted in a file; raise unless that is the number of attempts."""
    with Path(book).open("a") as lines:
        lines.write("ran\n")
    ran = len(Path(book).read_text().splitlines())
    if ran < attempts:
        raise ValueError(f"attempt {ran}")
    return ran


def nap(number: int) -> int:
    """Return the number after five milliseconds."""
    time.sleep(0.005)
    return number


async def same_later(value: Any) -> Any:
    """Return the value, after a turn of a loop."""
    await asyncio.sleep(0.001)
    return value


def fail(text: str, number: int) -> NoReturn:
    """Raise an error of the task's own."""
    raise OwnError(text, number)


def fail_from(text: str, number: int) -> NoReturn:
    """Raise an error because of another."""
    try:
        fail(text, number)
    except OwnError as cause:
        error = WordyError(text, number)
        error.add_note("a note")
        raise error from cause


def leave(code: int) -> NoReturn:
    """Leave the interpreter, which must not succeed."""
    sys.exit(code)


def process() -> int:
    """Return the process that runs this."""
    return os.getpid()


def return_a_lock() -> Any:
    """Return what cannot be pickled."""
    return threading.Lock()


def raise_a_lock() -> NoReturn:
    """Raise what cannot be pickled."""
    raise ClosedError("it holds a lock")


def wait_at(folder: str, name: str) -> str:
    """Say that this began, and wait until the gate of the folder is open."""
    Path(folder, f"{name}.began").write_text(str(os.getpid()))
    end = time.monotonic() + _LIMIT
    while not Path(folder, "open").exists() and time.monotonic() < end:
        time.sleep(0.01)
    return name


def beat(folder: str, name: str) -> str:
    """Say again and again that this runs, until the gate of the folder is open."""
    heart = Path(folder, f"{name}.beat")
    end = time.monotonic() + _LIMIT
    beats = 0
    while not Path(folder, "open").exists() and time.monotonic() < end:
        beats += 1
        heart.write_text(str(beats))
        time.sleep(0.01)
    return name


def sign(folder: str, name: str, seconds: float = 0.0) -> str:
    """Leave one line in the file `name` for each time that this is run."""
    with Path(folder, name).open("a") as book:
        book.write("ran\n")
    if seconds:
        time.sleep(seconds)
    return name


def sign_then(folder: str, name: str, then: Callable[[], Any] | None) -> str:
    """Leave one line in the file `name`, and call a function after it, if one is given."""
    sign(folder, name)
    if then is not None:
        then()
    return name


def sign_at(folder: str, name: str) -> str:
    """Leave one line in the file `name`, and run as long as the folder has a file `shut`."""
    sign(folder, name)
    end = time.monotonic() + _LIMIT
    while Path(folder, "shut").exists() and time.monotonic() < end:
        time.sleep(0.01)
    return name


def die() -> NoReturn:
    """Kill the worker process that runs this."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")
