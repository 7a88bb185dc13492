"""The Dragon backends against hand-written Dragon, in one runtime and one run.

    python benchmarks/bench_dragon.py [v2] [v1] [v3] [stream]

Prints for each measurement ours, raw, their ratio, and the bound. Needs about four minutes, nearly all of it raw Batch.
Exits with 1 if a bound does not hold, which on a busy machine says nothing.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rhapsody.api import ComputeTask, Session
from rhapsody.measure.work import noop
from rhapsody_dragon import runtime
from rhapsody_dragon.v1 import DragonExecutionBackendV1
from rhapsody_dragon.v2 import DragonExecutionBackendV2
from rhapsody_dragon.v3 import DragonExecutionBackendV3

MANY = 2000
RAW = 20
ROUNDS = 5
LONG, LONG_SECONDS, WORKERS = 50, 0.2, 2
SINGLES = 50
IDLE = 0.02

failures: list[str] = []


def echo(inbox: Any, outbox: Any) -> None:
    while (message := inbox.get()) is not None:
        outbox.put(message)


def tell(what: str, ours: float, raw: float, bound: float, unit: str = "ms") -> None:
    ratio = ours / raw
    verdict = "ok" if ratio <= bound else "TOO SLOW"
    if ratio > bound:
        failures.append(what)
    print(
        f"{what:58} ours {ours:9.3f} {unit}  raw {raw:9.3f} {unit}  ratio {ratio:7.4f}  bound {bound:g}  {verdict}",
        flush=True,
    )


async def run_all(session: Session, tasks: Sequence[ComputeTask]) -> float:
    """Submit tasks and wait for them; seconds."""
    began = time.perf_counter()
    await session.submit_tasks(tasks)
    await session.wait_tasks(tasks)
    seconds = time.perf_counter() - began
    for task in tasks:
        task.result()
    return seconds


async def no_ops(session: Session) -> float:
    """Milliseconds for each of many no-op functions, the median of the rounds; workers know the function by then."""
    await run_all(session, [ComputeTask(function=noop) for _ in range(MANY)])
    rounds = [await run_all(session, [ComputeTask(function=noop) for _ in range(MANY)]) for _ in range(ROUNDS)]
    return statistics.median(rounds) / MANY * 1e3


async def makespan(session: Session, what: str, make: Callable[[], ComputeTask]) -> float:
    """Compare with the ideal; seconds."""
    took = await run_all(session, [make() for _ in range(LONG)])
    tell(f"{what}: {LONG} tasks of {LONG_SECONDS:g} s, makespan", took, LONG * LONG_SECONDS / WORKERS, 1.1, "s ")
    return took


async def medians(*calls: Callable[[], Awaitable[None]]) -> list[float]:
    """The medians of single calls, in turn, each to something idle; milliseconds."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(SINGLES):
        for call, took in zip(calls, times, strict=True):
            await asyncio.sleep(IDLE)
            began = time.perf_counter()
            await call()
            took.append(time.perf_counter() - began)
    return [statistics.median(took) * 1e3 for took in times]


def sleeper() -> ComputeTask:
    return ComputeTask(function=time.sleep, args=(LONG_SECONDS,))


async def v2(session: Session) -> None:
    from dragon.native.process import Process
    from dragon.native.queue import Queue

    tell(f"V2: {MANY} no-op functions, each, against 0.1 ms", await no_ops(session), 0.1, 1.0)
    inbox, outbox = Queue(), Queue()
    process = Process(target=echo, args=(inbox, outbox))
    process.start()

    async def bare() -> None:
        inbox.put(b"x" * 150)
        outbox.get()

    async def one() -> None:
        task = ComputeTask(function=noop)
        await session.submit_tasks([task])
        await task

    await bare()
    raw, ours = await medians(bare, one)
    tell("V2: one task on idle workers, against a bare put and get", ours, raw, 3.0)
    inbox.put(None)
    process.join()
    await makespan(session, "V2", sleeper)


async def v1(session: Session) -> None:
    from dragon.native.process import Process

    async def bare() -> None:
        process = Process(target="/bin/true", args=[])
        process.start()
        process.join()

    async def one() -> None:
        task = ComputeTask(executable="/bin/true")
        await session.submit_tasks([task])
        await task

    raw, ours = await medians(bare, one)
    tell("V1: one executable, against a bare native Process", ours, raw, 1.3)
    took = await makespan(session, "V1", lambda: ComputeTask(executable="sleep", arguments=[LONG_SECONDS]))
    tell("V1: the same, against bare native Processes", took, await asyncio.to_thread(raw_makespan), 1.1, "s ")


def raw_makespan() -> float:
    """Seconds for the same with as many threads as slots, each of which starts and joins processes one by one."""
    from dragon.native.process import Process

    def one(_: int) -> None:
        process = Process(target="/bin/sleep", args=[str(LONG_SECONDS)])
        process.start()
        process.join()

    began = time.perf_counter()
    with ThreadPoolExecutor(WORKERS) as threads:
        list(threads.map(one, range(LONG)))
    return time.perf_counter() - began


def raw_batch() -> float:
    """Milliseconds for each of a few no-op functions given to Batch.function one by one, and their results fetched."""
    from dragon.workflows.batch import Batch

    batch = Batch()
    try:
        batch.function(noop).get()
        rounds = []
        for _ in range(2):
            began = time.perf_counter()
            tasks = [batch.function(noop) for _ in range(RAW)]
            for task in tasks:
                task.get()
            rounds.append((time.perf_counter() - began) / RAW)
        return min(rounds) * 1e3
    finally:
        batch.terminate(timeout=10)


async def with_session(backend: Any, work: Callable[[Session], Awaitable[None]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Session([backend], work_dir=folder) as session:
            await work(session)


def main(chosen: Sequence[str]) -> int:
    chosen = chosen or ("v2", "v1", "v3", "stream")
    held = runtime.acquire(lambda what: None, threading.Event())
    try:
        if "v2" in chosen:
            asyncio.run(with_session(DragonExecutionBackendV2({"slots": WORKERS}), v2))
        if "v1" in chosen:
            asyncio.run(with_session(DragonExecutionBackendV1({"slots": WORKERS}), v1))
        raw = raw_batch() if {"v3", "stream"} & set(chosen) else 0.0

        async def v3(session: Session) -> None:
            tell(f"V3, batch mode: {MANY} no-op functions, each, against Batch", await no_ops(session), raw, 0.02)
            await makespan(session, "V3, batch mode", sleeper)

        async def stream(session: Session) -> None:
            await run_all(session, [ComputeTask(function=noop)])
            rounds = [await run_all(session, [ComputeTask(function=noop) for _ in range(RAW)]) for _ in range(2)]
            tell(f"V3, stream mode: {RAW} no-op functions, each, against Batch", min(rounds) / RAW * 1e3, raw, 1.2)

        if "v3" in chosen:
            asyncio.run(with_session(DragonExecutionBackendV3(num_workers=WORKERS), v3))
        if "stream" in chosen:
            asyncio.run(with_session(DragonExecutionBackendV3(disable_batch_submission=True), stream))
    finally:
        runtime.release(held)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
