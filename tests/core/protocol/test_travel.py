"""What cannot travel, and what is large: it is the matter of its own task, and the others never notice."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from typing import Any

import pytest
from rhapsody.api import ComputeTask, SerializationError, Session, TaskState
from rhapsody.backends import ConcurrentExecutionBackend

pytestmark = pytest.mark.usefixtures("leaves_nothing")


class Bomb:
    """Can be pickled, and goes off when it is loaded."""

    def __init__(self, error: type[BaseException] = ZeroDivisionError) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return _explode, (self.error,)


def _explode(error: type[BaseException]) -> Any:
    raise error("when it was loaded")


class Unpicklable:
    """Cannot be pickled, and says why."""

    def __reduce__(self) -> Any:
        raise TypeError("this holds a GPU")


@dataclass(frozen=True, slots=True)
class FrozenError(Exception):
    """Refuses that any attribute of it is set."""

    code: int


def _raise_frozen() -> None:
    raise FrozenError(7)


class HeldError(Exception):
    """Holds what cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class SilentError(Exception):
    """Cannot even be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class FakeError(Exception):
    """Turns into something else on its way."""

    def __reduce__(self) -> Any:
        return str, ("I am text",)


def _raise(error: BaseException) -> None:
    raise error


def _make(kind: type, *args: Any) -> Any:
    return kind(*args)


def _raise_made(kind: type[BaseException], *args: Any) -> None:
    raise kind(*args)


CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "an argument that cannot be pickled": ({"function": id, "args": (Unpicklable(),)}, "TypeError", "holds a GPU"),
    "an argument that fails when loaded": ({"function": id, "args": (Bomb(),)}, "ZeroDivisionError", "when it was"),
    "an argument that exits when loaded": ({"function": id, "args": (Bomb(SystemExit),)}, "SystemExit", "when it was"),
    "a result that cannot be pickled": ({"function": _make, "args": (Unpicklable,)}, "TypeError", "holds a GPU"),
    "a result that fails when loaded": ({"function": _make, "args": (Bomb,)}, "ZeroDivisionError", "when it was"),
    "a result that exits when loaded": (
        {"function": _make, "args": (Bomb, KeyboardInterrupt)},
        "KeyboardInterrupt",
        "when it was",
    ),
    "a generator": ({"function": lambda: (i for i in range(3))}, "TypeError", "generator"),
    "an exception that cannot be pickled": (
        {"function": _raise_made, "args": (HeldError, "own words")},
        "HeldError",
        "own words",
    ),
    "an exception that cannot be shown": ({"function": _raise_made, "args": (SilentError,)}, "", ""),
    "an exception that is none here": ({"function": _raise_made, "args": (FakeError, "x")}, "FakeError", "FakeError"),
}


@pytest.mark.parametrize("case", CASES)
async def test_untransportable_data_fails_alone(case: str) -> None:
    """What cannot be pickled or loaded fails its own task, with the original class and message."""
    fields, name, words = CASES[case]
    backend = ConcurrentExecutionBackend(executor="processes", max_workers=1, batching={"target": 60})
    async with Session(backends=[backend]) as session:
        good = [ComputeTask(function=pow, args=(i, 2)) for i in range(20)]
        await session.submit_tasks(good[:10])
        await session.wait_tasks(timeout=60)  # known to be short: the next ones share batches
        bad = ComputeTask(**fields)
        others = [*good[10:15], bad, *good[15:]]
        await session.submit_tasks(others)
        await session.wait_tasks(timeout=60)
        assert [task.return_value for task in good] == [i * i for i in range(20)]
        assert bad.state is TaskState.FAILED
        if case == "an exception that cannot be shown":
            assert type(bad.exception).__name__ in ("SilentError", "SerializationError")
            return
        assert isinstance(bad.exception, SerializationError)
        assert bad.exception.original_type == name
        assert words in str(bad.exception)
        assert bad.uid in str(bad.exception)
        if "exception" in case and "none here" not in case:
            assert "_raise_made" in bad.exception.original_traceback


async def test_frozen_exception_keeps_its_class() -> None:
    """An exception that forbids attributes arrives as itself, with its traceback."""
    async with Session(backends=[ConcurrentExecutionBackend(executor="processes", max_workers=1)]) as session:
        tasks = [ComputeTask(function=_raise_frozen), ComputeTask(function=pow, args=(2, 3))]
        await session.submit_tasks(tasks)
        await session.wait_tasks(timeout=60)
    assert tasks[0].exception == FrozenError(7)
    assert "_raise_frozen" in tasks[0].exception.__notes__[-1]
    assert tasks[1].return_value == 8


@pytest.mark.parametrize("kind", ["threads", "processes"])
async def test_large_result_arrives_whole(kind: str) -> None:
    """A result of 200 MB arrives whole, and the loop is served meanwhile."""
    turns = 0

    async def watch() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.001)

    def large() -> bytes:
        return bytes(200_000_000)

    async with Session(backends=[ConcurrentExecutionBackend(executor=kind, max_workers=1)]) as session:
        task, after = ComputeTask(function=large), ComputeTask(function=int)
        watcher = asyncio.ensure_future(watch())
        await session.submit_tasks([task, after])
        await session.wait_tasks(timeout=100)
        watcher.cancel()
        assert (len(task.return_value), after.return_value) == (200_000_000, 0)
        assert kind == "threads" or turns > 20  # in threads nothing has to be carried


async def test_large_arguments_arrive_whole() -> None:
    """Arguments of 200 MB arrive whole."""
    data = bytes(100_000_000)
    async with Session(backends=[ConcurrentExecutionBackend(executor="processes", max_workers=2)]) as session:
        tasks = [ComputeTask(function=lambda a, b: (len(a), len(b)), args=(data, data + b"x"))]
        await session.submit_tasks(tasks)
        assert (await tasks[0]).return_value == (100_000_000, 100_000_001)


async def test_large_output_on_both_streams() -> None:
    """Ten megabytes on stdout and stderr at once arrive whole and in order."""
    script = "for s in 1 2; do seq 1000000 | if [ $s = 1 ]; then cat; else cat >&2; fi & done; wait"
    async with Session(backends=[ConcurrentExecutionBackend(max_workers=2)]) as session:
        task = ComputeTask(executable=script, shell=True)
        await session.submit_tasks([task])
        await session.wait_tasks(timeout=60)
    wanted = "".join(f"{i}\n" for i in range(1, 1_000_001))
    assert task.stdout == wanted
    assert task.stderr == wanted


async def test_unwatchable_executable_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An executable of a thread that cannot be watched is not left running."""

    def broken(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("rhapsody.worker.executables._drive", broken)
    async with Session(backends=[ConcurrentExecutionBackend(max_workers=1)]) as session:
        task = ComputeTask(executable="sleep", arguments=[600])
        began = time.monotonic()
        await session.submit_tasks([task])
        await session.wait_tasks(timeout=60)
        assert task.state is TaskState.FAILED
        assert "Too many open files" in str(task.exception)
        assert time.monotonic() - began < 60
