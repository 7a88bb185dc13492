"""What goes wrong under radical.asyncflow fails one task, and the workflow goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import TaskExecutionError, TaskTimeoutError, UnsupportedError
from rhapsody.backends import ConcurrentExecutionBackend

asyncflow = pytest.importorskip("radical.asyncflow", reason="radical.asyncflow is not installed")

pytestmark = pytest.mark.usefixtures("leaves_nothing")

WORDS: dict[str, tuple[dict[str, Any], str]] = {  # what it prints, or what the refusal names
    "env": ({"env": {"COLOUR": "red"}}, "red"),
    "environment": ({"environment": {"COLOUR": "blue"}}, "blue"),
    "cwd": ({"cwd": "/"}, ""),
    "shell": ({"shell": True}, ""),
    "one rank": ({"ranks": 1, "cores_per_rank": 1, "gpus_per_rank": 0}, ""),
    "ranks": ({"ranks": 4096}, "refused: 4096"),
    "memory": ({"ranks": 1, "mem_per_rank": 2**40}, "refused: memory"),
    "gpus": ({"gpus_per_rank": 4096}, "refused: 4096 GPUs"),
    "timeout": ({"timeout": 600}, ""),
    "pre_exec": ({"pre_exec": ["module load x"]}, "refused: pre_exec"),
    "process_template": ({"process_template": {}}, "refused: process_template"),
    "process_templates": ({"process_templates": []}, "refused: process_templates"),
    "unknown": ({"colour": "red"}, "refused: colour"),
}


@pytest.fixture
async def flow(work_dir: Path) -> AsyncIterator[Any]:
    backend = await ConcurrentExecutionBackend(max_workers=4)
    engine = await asyncflow.WorkflowEngine.create(backend=backend, uid="flow.0000", work_dir=str(work_dir))
    yield engine
    await engine.shutdown()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What functions in threads wait for; open when the test is over."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("case", WORDS)
async def test_task_description_words(flow: Any, case: str) -> None:
    """Each word of a task_description works, or fails that task by its name; the engine lives on."""
    description, printed = WORDS[case]

    @flow.executable_task
    async def show(task_description: dict[str, Any] = description) -> str:
        return "sh -c 'echo $COLOUR'"

    @flow.function_task
    async def double(number: int) -> int:
        return 2 * number

    shown, doubled = show(), double(21)
    if printed.startswith("refused: "):
        with pytest.raises(UnsupportedError, match=printed.removeprefix("refused: ")):
            await asyncio.wait_for(shown, 60)
    else:
        assert (await asyncio.wait_for(shown, 60)).strip() == printed
    assert await asyncio.wait_for(doubled, 60) == 42
    assert await asyncio.wait_for(double(4), 60) == 8


async def test_timeout_of_a_task(flow: Any) -> None:
    """A task whose timeout is over fails with TaskTimeoutError, by the uid that the workflow knows."""

    @flow.executable_task
    async def forever() -> str:
        return "sleep 600"

    @flow.function_task
    async def answer() -> int:
        return 42

    assert await asyncio.wait_for(answer(), 60) == 42
    future = forever(task_description={"timeout": 0.1})
    with pytest.raises(TaskTimeoutError) as caught:
        await asyncio.wait_for(future, 60)
    assert str(caught.value).startswith(f"task {future.task['uid']} had not ended")
    assert await asyncio.wait_for(answer(), 60) == 42


async def test_failure_in_a_block(flow: Any) -> None:
    """A task that fails in a block fails the block with its exception; blocks beside it go on."""

    @flow.function_task
    async def divide(number: int) -> float:
        return 1 / number

    @flow.block
    async def ratio(number: int) -> float:
        result: float = await divide(number)
        return result

    bad, good = ratio(0), ratio(2)
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(bad, 60)
    assert await asyncio.wait_for(good, 60) == 0.5


async def test_prompt_fails_alone(flow: Any) -> None:
    """A prompt fails by itself; the workflow goes on."""

    @flow.prompt_task
    async def ask() -> str:
        return "why?"

    @flow.function_task
    async def answer() -> int:
        return 42

    with pytest.raises(UnsupportedError, match="prompts"):
        await asyncio.wait_for(ask(), 60)
    assert await asyncio.wait_for(answer(), 60) == 42


async def test_wait_for_times_out(flow: Any, gate: threading.Event) -> None:
    """A wait with a timeout ends though the function cannot be stopped; its late end changes nothing."""

    @flow.function_task
    async def stuck() -> str:
        gate.wait(120)
        return "late"

    @flow.function_task
    async def quick() -> int:
        return 7

    future = stuck()
    while future.state != "RUNNING":
        await asyncio.sleep(0.01)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.wait_for(future, 0.1), 60)
    assert not gate.is_set()
    gate.set()
    assert await asyncio.wait_for(quick(), 60) == 7
    assert future.cancelled()


async def test_canceled_block_cancels_members(flow: Any, gate: threading.Event) -> None:
    """A canceled block cancels the task that runs and those that wait for it."""
    running = asyncio.Event()

    @flow.function_task
    async def stuck(*_: Any) -> None:
        gate.wait(120)

    @flow.block
    async def chain() -> None:
        first = stuck()
        last = stuck(first)
        while first.state != "RUNNING":
            await asyncio.sleep(0.01)
        running.set()
        await last

    block = chain()
    await asyncio.wait_for(running.wait(), 60)
    block.cancel()
    members = [part["future"] for part in flow.components.values() if part["type"] == "task"]
    await asyncio.wait_for(asyncio.wait(members), 60)
    assert len(members) == 2
    assert all(member.cancelled() for member in members)
    assert block.cancelled()


async def test_captured_output_is_a_path(flow: Any, work_dir: Path) -> None:
    """With capture_stdio a task's result is the path of its output, in the folder of the engine."""

    @flow.executable_task(capture_stdio=True)
    async def show() -> str:
        return "echo hello"

    path = Path(await asyncio.wait_for(show(), 60))
    assert path.read_text() == "hello\n"
    assert path.suffix == ".stdout"
    assert path.parent == work_dir / "flow.0000"


async def test_captured_output_of_a_failure(flow: Any) -> None:
    """A task that fails keeps its captured output, and its error names the files."""

    @flow.executable_task(capture_stdio=True)
    async def broken() -> str:
        return "sh -c 'echo out; echo why >&2; exit 3'"

    future = broken()
    with pytest.raises(TaskExecutionError, match="exit code 3") as caught:
        await asyncio.wait_for(future, 60)
    paths = future.task["stdout"], future.task["stderr"]
    assert [Path(path).read_text() for path in paths] == ["out\n", "why\n"]
    assert [Path(path).name for path in paths] == [f"{future.task['uid']}.stdout", f"{future.task['uid']}.stderr"]
    assert caught.value.paths == paths
