"""The functions that the suite runs as tasks. They import the standard library and nothing else, on any worker."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

_LIMIT = 300.0  # seconds after which a task that was never told to end does so by itself


class OwnError(Exception):
    """An exception of the task's own, which carries data."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text, number)
        self.number = number


class ClosedError(Exception):
    """An exception that cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


def echo(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what was given."""
    return args, kwargs


def same(value: Any) -> Any:
    """Return the value."""
    return value


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


def die() -> NoReturn:
    """Kill the worker process that runs this."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")
