"""Workers of the process pool give back what waits behind a long task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rhapsody.api import ComputeTask, TaskState
from rhapsody.testing.gate import Gate
from rhapsody.testing.tasks import wait_at

from .pool import processes, running


def noted(book: str, text: str, folder: str | None) -> str:
    """Write a line, and wait at a gate where there is one."""
    with Path(book).open("a") as file:
        file.write(f"{text}\n")
    return text if folder is None else wait_at(folder, text)


def many(book: Path, count: int, gate: Gate | None = None) -> list[ComputeTask]:
    folder = None if gate is None else str(gate.folder)
    return [ComputeTask(function=noted, args=(str(book), f"{gate and 'long'}{n}", folder)) for n in range(count)]


async def test_neighbours_of_a_long_task_run_elsewhere(tmp_path: Path) -> None:
    """They end while it goes on, and each task runs once."""
    book, gate = tmp_path / "book", Gate(tmp_path)
    async with processes(2) as session:
        await session.submit_tasks(many(tmp_path / "other", 300))
        await session.wait_tasks(timeout=60)
        short = many(book, 300)
        (long,) = many(book, 1, gate)
        await session.submit_tasks([*short[:100], long, *short[100:]])
        await session.wait_tasks(short, timeout=60)
        assert long.state is TaskState.RUNNING
        gate.open()
        await session.wait_tasks(timeout=60)
    lines = book.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 301


async def test_canceled_neighbours_stay_canceled(tmp_path: Path) -> None:
    """A task that was canceled behind a long one is not given back to run."""
    book, gate = tmp_path / "book", Gate(tmp_path)
    options: dict[str, Any] = {"batching": {"max_tasks": 20, "target": 0.04}}
    async with processes(2, **options) as session:
        await session.submit_tasks(many(tmp_path / "other", 300))
        await session.wait_tasks(timeout=60)
        long = many(book, 2, gate)
        short = many(book, 60)
        await session.submit_tasks([*long, *short])
        await running(long[0])
        await session.cancel_tasks(short[:10])
        gate.open()
        await session.wait_tasks(timeout=60)
    assert {task.state for task in short[:10]} <= {TaskState.CANCELED, TaskState.DONE}
    lines = book.read_text().splitlines()
    done = [task for task in (*long, *short) if task.state is TaskState.DONE]
    assert sorted(lines) == sorted(task.return_value for task in done)


async def test_a_large_result_hides_no_beginning(tmp_path: Path) -> None:
    """Where frames come by the socket, since the page is full, a task that has begun is not given back."""
    gate = Gate(tmp_path)
    async with processes(2) as session:
        await session.submit_tasks([ComputeTask(function=large, args=(tmp_path, 10, None)) for _ in range(300)])
        await session.wait_tasks(timeout=60)
        tasks = [ComputeTask(function=large, args=(tmp_path, 40_000, None)) for _ in range(200)]
        tasks.insert(60, ComputeTask(function=large, args=(tmp_path, 10, str(gate.folder))))
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks[:60] + tasks[61:], timeout=60)
        gate.open()
        await session.wait_tasks(timeout=60)
        assert all(task.state is TaskState.DONE and task.attempt == 1 for task in tasks)


def large(_: Path, size: int, folder: str | None) -> bytes:
    """Return bytes, after a gate where there is one."""
    if folder is not None:
        wait_at(folder, "large")
    return bytes(size)
