"""What functions print is kept with their tasks, where these ask for it."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import pytest
from rhapsody.api import ComputeTask

from ..local import KINDS, local, run

pytestmark = pytest.mark.usefixtures("leaves_nothing")


async def chat(text: str) -> None:
    print(text)  # noqa: T201  # what is tested
    await asyncio.sleep(0)
    print(text, file=sys.stderr)  # noqa: T201  # as is this
    raise LookupError(text)


@pytest.mark.parametrize("kind", KINDS)
async def test_prints_of_failed_coroutines_are_kept(kind: str) -> None:
    """What an async function printed is kept, also where it fails; a task may draw from a seed, too."""
    (task,) = await run(local(kind), ComputeTask(function=chat, args=("one",), capture_stdio=True, seed=None))
    assert (task.stdout, task.stderr) == ("one\n", "one\n")
    assert isinstance(task.exception, LookupError)


async def test_threads_do_not_mix_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """Tasks that print at the same time keep their own; one that does not ask prints to the program's stream."""
    both = threading.Barrier(3, timeout=30)
    before = sys.stdout

    def talk(name: str) -> None:
        for _ in range(3):
            both.wait()
            print(name)  # noqa: T201  # as is this

    tasks: list[Any] = [ComputeTask(function=talk, args=(name,), capture_stdio=name != "c") for name in "abc"]
    await run(local(max_workers=3), *tasks)
    assert [task.stdout for task in tasks] == ["a\n" * 3, "b\n" * 3, None]
    assert capsys.readouterr().out == "c\n" * 3
    assert sys.stdout is before
