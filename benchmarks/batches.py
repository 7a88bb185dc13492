"""What stands in batches: one large array for many tasks, and long tasks among short ones."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from rhapsody.api import ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend

LARGE = 12_500_000  # numbers, which are 100 MB
READERS = 12
SHORT, LONG = 4000, 8
Row = tuple[str, str, float | None]


def read(array: np.ndarray, number: int) -> float:
    return float(array[number] + array.sum())


def read_file(path: str, number: int) -> float:
    return read(np.load(path, mmap_mode="r"), number)


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


async def large_on_processes(scale: float) -> list[Row]:
    """12 tasks with one array of 100 MB, against a file that is written once and mapped by each of them."""
    with ProcessPoolExecutor(2) as pool, tempfile.TemporaryDirectory() as folder:
        number = itertools.count()

        async def by_hand(array: np.ndarray) -> float:
            loop = asyncio.get_running_loop()
            path = str(Path(folder) / f"{next(number)}.npy")
            await asyncio.to_thread(np.save, path, array)
            return sum(await asyncio.gather(*(loop.run_in_executor(pool, read_file, path, n) for n in range(READERS))))

        backend = ConcurrentExecutionBackend(executor="processes", max_workers=2)
        async with Session(backends=[backend]) as session:
            return [await compare_large("12 tasks with one array of 100 MB, 2 processes", session, by_hand, scale)]


async def compare_large(
    what: str, session: Session, by_hand: Callable[[np.ndarray], Awaitable[float]], scale: float = 1.0
) -> Row:
    """Compare one array for many tasks with what one would write by hand; its content is another in each round."""
    pairs: list[tuple[float, float]] = []
    gaps: list[float] = []
    for number in range(6):
        array = np.full(int(LARGE * scale), float(number))
        began = time.perf_counter()
        wanted = await by_hand(array)
        raw = time.perf_counter() - began
        array += 0.5
        watch = asyncio.create_task(longest_gap(gaps))
        began = time.perf_counter()
        tasks = [ComputeTask(function=read, args=(array, n)) for n in range(READERS)]
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)
        pairs.append((time.perf_counter() - began, raw))
        watch.cancel()
        found = sum(task.result().return_value for task in tasks)
        assert np.isclose(found - wanted, 0.5 * READERS * (array.size + 1))
    del pairs[0]  # processes come up, and learn the function
    ours, raw = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    return what, f"{ours:.2f}, {raw:.2f} s by hand; longest gap of the loop {1e3 * max(gaps):.0f} ms", ratio


async def longest_gap(gaps: list[float]) -> None:
    """Note the longest time between two turns of the loop."""
    before = time.perf_counter()
    while True:
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        gaps.append(now - before)
        before = now


async def long_among_short(scale: float) -> list[Row]:
    """8 tasks of 3 s among 4,000 of 1 ms on 8 processes, at the start, in the middle and at the end."""
    backend = ConcurrentExecutionBackend(executor="processes", max_workers=8)
    async with Session(backends=[backend]) as session:
        return [await makespan_of(session, where, scale) for where in ("start", "middle", "end")]


async def makespan_of(session: Session, where: str, scale: float = 1.0) -> Row:
    """Compare the makespan of long tasks among short ones of the same function with the best one."""
    short = int(SHORT * scale)
    before = {"start": 0, "middle": short // 2, "end": short}[where]
    seconds = [0.001] * before + [3.0] * LONG + [0.001] * (short - before)
    warm = [ComputeTask(function=nap, args=(0.001,)) for _ in range(400)]
    await session.submit_tasks(warm)
    await session.wait_tasks(warm)
    began = time.perf_counter()
    tasks = [ComputeTask(function=nap, args=(each,)) for each in seconds]
    await session.submit_tasks(tasks)
    await session.wait_tasks(tasks)
    took, best = time.perf_counter() - began, max(3.0, sum(seconds) / 8)
    return (
        f"8 tasks of 3 s at the {where} of {short} of 1 ms, 8 slots",
        f"{took:.2f} s, at best {best:.2f}",
        took / best,
    )
