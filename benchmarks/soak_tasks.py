"""What the soak's tasks do, and how each may end."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rhapsody.api import ComputeTask, SerializationError, TaskExecutionError, WorkerLostError


def square(ledger: str, uid: str, i: int) -> int:
    with Path(ledger).open("a") as lines:  # one line for each time that it ran
        lines.write(f"{uid}\n")
    return i * i


async def later(i: int) -> int:
    await asyncio.sleep(0.002)
    return i + 1


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def fail(i: int) -> None:
    raise LookupError(i)


def large(i: int) -> bytes:
    return bytes([i % 256]) * (i * 1000)


def lock() -> Any:
    return threading.Lock()


def die(signum: int) -> None:
    os.kill(os.getpid(), signum)


class Expected:
    """How a task may end."""

    def __init__(
        self,
        task: ComputeTask,
        *,
        value: Any = None,
        stdout: str | None = None,
        error: type[BaseException] | None = None,
    ) -> None:
        self.task = task
        self.value = value
        self.stdout = stdout
        self.error = error
        self.canceled = False
        self.can_hang = False


def random_task(dice: random.Random, ledger: str) -> Expected:
    """Make a task of any kind."""
    i = dice.randint(0, 1000)
    backend = dice.choice(("threads", "processes"))
    roll = dice.random()
    make: Callable[..., ComputeTask] = lambda **fields: ComputeTask(backend=backend, **fields)  # noqa: E731
    if roll < 0.90:
        task = make(function=square)
        task.args = (ledger, task.uid, i)
        return Expected(task, value=i * i)
    if roll < 0.92:
        return Expected(make(function=later, args=(i,)), value=i + 1)
    if roll < 0.94:
        return Expected(make(function=nap, args=(i / 50_000,)), value=i / 50_000)
    if roll < 0.955:
        return Expected(make(function=fail, args=(i,)), error=LookupError)
    if roll < 0.965:
        return Expected(make(function=large, args=(i,)), value=large(i))
    if roll < 0.97:
        return Expected(ComputeTask(function=lock, backend="processes"), error=SerializationError)
    if roll < 0.974:
        return Expected(make(function=sys.exit, args=(3,)), error=TaskExecutionError)
    if roll < 0.976:
        return Expected(ComputeTask(function=die, args=(signal.SIGKILL,), backend="processes"), error=WorkerLostError)
    if roll < 0.988:
        return Expected(make(executable="echo", arguments=[i]), stdout=f"{i}\n")
    if roll < 0.994:
        return Expected(make(executable="sh", arguments=["-c", "sleep 600 & exit 3"]), error=TaskExecutionError)
    if roll < 0.997:
        item = Expected(make(executable="sleep 600 & sleep 600", shell=True))
    else:
        item = Expected(ComputeTask(function=nap, args=(600.0,), backend="processes"))
    item.can_hang = True
    return item
