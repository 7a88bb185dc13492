"""Files that tasks of radical.asyncflow leave to each other, on a backend that links them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from rhapsody.backends import ConcurrentExecutionBackend

asyncflow = pytest.importorskip("radical.asyncflow", reason="radical.asyncflow is not installed")

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture(params=["threads", "processes"])
async def flow(request: pytest.FixtureRequest, work_dir: Path) -> AsyncIterator[Any]:
    backend = ConcurrentExecutionBackend(executor=request.param, max_workers=2, link_files=True)
    engine = await asyncflow.WorkflowEngine.create(backend=backend, uid="flow", work_dir=str(work_dir))
    yield engine
    await engine.shutdown()


async def test_files_follow_the_graph(flow: Any, work_dir: Path) -> None:
    """A task finds what the tasks before it have left, named files and those that are at a path, in its own folder."""
    (work_dir / "given.txt").write_text("given ")

    @flow.executable_task
    async def make(*_: Any) -> str:
        return "cp given.txt made.txt"

    @flow.executable_task
    async def read(*_: Any) -> str:
        return "cat made.txt"

    @flow.executable_task
    async def touch() -> str:
        return "touch touched"

    @flow.executable_task
    async def names(*_: Any) -> str:
        return "ls"

    made = make(asyncflow.InputFile("given.txt"), asyncflow.OutputFile("made.txt"))
    assert await read(made, asyncflow.InputFile("made.txt")) == "given "
    assert await names(names()) == ""  # which has left nothing
    assert (await names(touch())).split() == ["touched"]
    assert not (work_dir / "made.txt").exists()


async def test_missing_file_fails_its_reader(flow: Any) -> None:
    """A file that was not made fails the task that reads it, and the engine goes on."""

    @flow.executable_task
    async def nothing(*_: Any) -> str:
        return "true"

    @flow.executable_task
    async def read(*_: Any) -> str:
        return "cat never.txt"

    first = nothing(asyncflow.OutputFile("never.txt"))
    with pytest.raises(Exception, match=r"never\.txt"):
        await read(first, asyncflow.InputFile("never.txt"))
    assert await nothing() == ""
