"""The Dragon backends against hand-written Dragon, in one runtime and one run.

    python benchmarks/bench_dragon.py [v2] [v1] [v3] [stream]

Prints for each measurement ours, raw, their ratio, and the bound. Needs about two minutes.
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
from typing import Any

import psutil
from rhapsody.api import ComputeTask, Resources, Session
from rhapsody.measure.work import noop
from rhapsody_dragon import runtime
from rhapsody_dragon.v1 import DragonExecutionBackendV1
from rhapsody_dragon.v2 import DragonExecutionBackendV2
from rhapsody_dragon.v3 import DragonExecutionBackendV3

MANY = 10_000
STREAMED = 1000
ROUNDS = 5
LONG, LONG_SECONDS, WORKERS = 50, 0.2, 2
SINGLES = 50
JOBS = 5
PAUSE = 0.02
IDLE_SECONDS = 10.0

failures: list[str] = []


def echo(inbox: Any, outbox: Any) -> None:
    while (message := inbox.get()) is not None:
        outbox.put(message)


def record(what: str, ours: float, raw: float, bound: float, symbol: str = "ms") -> None:
    ratio = ours / raw
    verdict = "ok" if ratio <= bound else "TOO SLOW"
    if ratio > bound:
        failures.append(what)
    print(
        f"{what:58} ours {ours:9.3f} {symbol}  raw {raw:9.3f} {symbol}  ratio {ratio:7.4f}  bound {bound:g}  {verdict}",
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


async def run_one(session: Session, **fields: Any) -> None:
    task = ComputeTask(**fields)
    await session.submit_tasks([task])
    await task


async def no_ops(session: Session, count: int) -> float:
    """Milliseconds for each of many no-op functions, the median of the rounds; workers know the function by then."""
    await run_all(session, [ComputeTask(function=noop) for _ in range(count)])
    rounds = [await run_all(session, [ComputeTask(function=noop) for _ in range(count)]) for _ in range(ROUNDS)]
    return statistics.median(rounds) / count * 1e3


async def makespan(session: Session, what: str, make: Callable[[], ComputeTask]) -> None:
    """Compare with the ideal."""
    took = await run_all(session, [make() for _ in range(LONG)])
    record(f"{what}: {LONG} tasks of {LONG_SECONDS:g} s, makespan", took, LONG * LONG_SECONDS / WORKERS, 1.05, "s ")


async def medians(*calls: Callable[[], Awaitable[None]], count: int = SINGLES) -> list[float]:
    """The medians of single calls, in turn, each to something idle; milliseconds."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(count):
        for call, took in zip(calls, times, strict=True):
            await asyncio.sleep(PAUSE)
            began = time.perf_counter()
            await call()
            took.append(time.perf_counter() - began)
    return [statistics.median(took) * 1e3 for took in times]


async def single(session: Session, what: str) -> None:
    """One task against a bare put and get."""
    from dragon.native.process import Process
    from dragon.native.queue import Queue

    inbox, outbox = Queue(), Queue()
    process = Process(target=echo, args=(inbox, outbox))
    process.start()

    async def bare() -> None:
        inbox.put(b"x" * 150)
        outbox.get()

    await bare()
    raw, ours = await medians(bare, lambda: run_one(session, function=noop))
    record(f"{what}: one task on idle workers, against a bare put and get", ours, raw, 2.5)
    inbox.put(None)
    process.join()


async def executable(session: Session, what: str) -> None:
    """One executable against a bare native Process."""
    from dragon.native.process import Process

    async def bare() -> None:
        process = Process(target="/bin/true", args=[])
        process.start()
        process.join()

    raw, ours = await medians(bare, lambda: run_one(session, executable="/bin/true"))
    record(f"{what}: one executable, against a bare native Process", ours, raw, 1.1)


async def job(session: Session, what: str) -> None:
    """A job of two ranks against a bare ProcessGroup."""
    from dragon.native.process import Process, ProcessTemplate
    from dragon.native.process_group import ProcessGroup

    async def bare() -> None:
        group = ProcessGroup(restart=False, ignore_error_on_exit=True)
        out = {"stdout": Process.DEVNULL, "stderr": Process.DEVNULL}
        group.add_process(nproc=2, template=ProcessTemplate(target="/bin/true", **out))
        group.init()
        group.start()
        group.join()
        group.close()

    ranks = Resources(ranks=2)
    raw, ours = await medians(bare, lambda: run_one(session, executable="/bin/true", resources=ranks), count=JOBS)
    record(f"{what}: a job of two ranks, against a bare ProcessGroup", ours, raw, 1.2)


async def idle() -> float:
    """The processor time of this process and all below it while nothing happens, in percent of one core."""
    owner = psutil.Process()
    everybody = [owner, *owner.children(recursive=True)]

    def seconds() -> float:
        return sum(one.cpu_times().user + one.cpu_times().system for one in everybody if one.is_running())

    await asyncio.sleep(1.0)
    before = seconds()
    await asyncio.sleep(IDLE_SECONDS)
    return (seconds() - before) / IDLE_SECONDS * 100


def sleeper() -> ComputeTask:
    return ComputeTask(function=time.sleep, args=(LONG_SECONDS,))


async def v1(session: Session) -> None:
    await executable(session, "V1")
    await job(session, "V1")
    await makespan(session, "V1", lambda: ComputeTask(executable="sleep", arguments=[LONG_SECONDS]))


async def v2(session: Session) -> None:
    record(f"V2: {MANY} no-op functions, each, against 0.02 ms", await no_ops(session, MANY), 0.02, 1.0)
    await single(session, "V2")
    await makespan(session, "V2", sleeper)


async def v3(session: Session) -> None:
    record(f"V3, batch mode: {MANY} no-op functions, each, against 0.02 ms", await no_ops(session, MANY), 0.02, 1.0)
    await single(session, "V3, batch mode")
    await executable(session, "V3, batch mode")
    await job(session, "V3, batch mode")
    await makespan(session, "V3, batch mode", sleeper)


async def stream(session: Session) -> None:
    record(
        f"V3, stream mode: {STREAMED} no-op functions, each, against 2 ms", await no_ops(session, STREAMED), 2.0, 1.0
    )
    await single(session, "V3, stream mode")
    await executable(session, "V3, stream mode")
    await job(session, "V3, stream mode")
    await makespan(session, "V3, stream mode", sleeper)


def main(chosen: Sequence[str]) -> int:
    backends: dict[str, tuple[Callable[[Session], Awaitable[None]], Callable[[], Any]]] = {
        "v2": (v2, lambda: DragonExecutionBackendV2({"slots": WORKERS})),
        "v1": (v1, lambda: DragonExecutionBackendV1({"slots": WORKERS})),
        "v3": (v3, lambda: DragonExecutionBackendV3(num_workers=WORKERS)),
        "stream": (stream, lambda: DragonExecutionBackendV3(num_workers=WORKERS, disable_batch_submission=True)),
    }
    held = runtime.acquire(lambda what: None, threading.Event())

    async def measure(name: str) -> None:
        work, make = backends[name]
        bare = await idle()
        with tempfile.TemporaryDirectory() as folder:
            async with Session([make()], work_dir=folder) as session:
                await work(session)
                took = await idle()
                record(f"{name}: idle, beside a bare runtime's {bare:.1f}%, of one core", took - bare, 3.0, 1.0, "% ")

    try:
        for name in chosen or backends:
            asyncio.run(measure(name))
    finally:
        runtime.release(held)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
