"""RHAPSODY on threads and on processes of this machine, against the executors of the standard library.

    python -m benchmarks [NAME ...] [--quick] [--json FILE]

Each measurement runs both sides in turn in one process, five rounds, and reports the median of the rounds' ratios with
the least and the most. Times include building the tasks. `--quick` takes a tenth of the tasks.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rhapsody.api import ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.measure import Comparison, Spread, compare, find_raw_engine
from rhapsody.measure.work import noop, work

from benchmarks import decisions
from benchmarks.batches import large_on_processes, long_among_short

ROUNDS = 5
Row = tuple[str, str, float | None]  # what, its figure, the ratio


def backend(executor: str, workers: int) -> ConcurrentExecutionBackend:
    return ConcurrentExecutionBackend(executor=executor, max_workers=workers)


async def noops_on_threads(scale: float) -> list[Row]:
    return [throughput("100,000 no-ops, 4 threads", await versus_raw("threads", 4, "noop", int(100_000 * scale)))]


async def noops_on_processes(scale: float) -> list[Row]:
    return [throughput("50,000 no-ops, 2 processes", await versus_raw("processes", 2, "noop", int(50_000 * scale)))]


async def executables(scale: float) -> list[Row]:
    return [throughput("2,000 executables, 2 slots", await versus_raw("threads", 2, "executable", int(2000 * scale)))]


async def versus_raw(executor: str, workers: int, kind: str, tasks: int) -> Comparison:
    return await compare(
        backend(executor, workers),
        find_raw_engine("concurrent"),
        kind=kind,
        tasks=tasks,
        rounds=ROUNDS,
        details=False,
    )


def throughput(what: str, found: Comparison) -> Row:
    assert found.ratio is not None
    assert found.raw_task_seconds is not None
    assert found.raw_cpu_seconds is not None
    text = (
        f"{micro(found.task_seconds)} against {micro(found.raw_task_seconds)} a task; processor time in this process "
        f"{found.cpu_seconds.median * 1e6:.1f} against {found.raw_cpu_seconds.median * 1e6:.1f} us "
        f"({found.cpu_seconds.median / found.raw_cpu_seconds.median:.3f}); "
        f"ratio {found.ratio.low:.3f} to {found.ratio.high:.3f}"
    )
    return what, text, found.ratio.median


def micro(spread: Spread) -> str:
    return f"{spread.median * 1e6:.1f} us ({spread.low * 1e6:.1f} to {spread.high * 1e6:.1f})"


async def latency(scale: float) -> list[Row]:
    rows: list[Row] = []
    for executor, pool in (("threads", ThreadPoolExecutor(2)), ("processes", ProcessPoolExecutor(2))):
        with pool:
            ours, raw = await single_tasks(executor, pool, max(50, int(1000 * scale)))
        ratio = ours[len(ours) // 2] / raw[len(raw) // 2]
        p50 = f"p50 {ours[len(ours) // 2] * 1e6:.0f} against {raw[len(raw) // 2] * 1e6:.0f} us"
        p99 = f"p99 {ours[len(ours) * 99 // 100] * 1e6:.0f} against {raw[len(raw) * 99 // 100] * 1e6:.0f} us"
        rows.append((f"one task on idle {executor}, against run_in_executor", f"{p50}; {p99}", ratio))
    return rows


async def single_tasks(executor: str, pool: Executor, count: int) -> tuple[list[float], list[float]]:
    loop, ours, raw = asyncio.get_running_loop(), [], []
    async with Session([backend(executor, 2)]) as session:
        for number in range(count + 20):
            start = time.perf_counter()
            await (await session.submit_tasks([ComputeTask(function=noop)]))[0]
            middle = time.perf_counter()
            await loop.run_in_executor(pool, noop)
            if number >= 20:
                ours.append(middle - start)
                raw.append(time.perf_counter() - middle)
    return sorted(ours), sorted(raw)


async def alone(scale: float) -> list[Row]:
    """Compare a task on an idle backend with and without batching, in turn."""
    took: dict[str, list[float]] = {"on": [], "off": []}
    backends = {
        "on": ConcurrentExecutionBackend("on", executor="processes", max_workers=2),
        "off": ConcurrentExecutionBackend("off", executor="processes", max_workers=2, batching=False),
    }
    async with Session(list(backends.values())) as session:
        for number in range(max(50, int(1000 * scale)) + 20):
            for name, times in took.items():
                start = time.perf_counter()
                await (await session.submit_tasks([ComputeTask(function=noop, backend=name)]))[0]
                if number >= 20:
                    times.append(time.perf_counter() - start)
    on, off = (sorted(times)[len(times) // 2] for times in took.values())
    text = f"p50 {on * 1e6:.0f} against {off * 1e6:.0f} us"
    return [("one task on idle processes, with batching against without", text, on / off)]


def loop(steps: int) -> int:
    total = 0
    for number in range(steps):
        total += number
    return total


async def loops(scale: float) -> list[Row]:
    """Eight loops of Python: with a global interpreter lock two threads take as long as one, without it half."""
    steps = int(3_000_000 * scale)
    begun = time.perf_counter()
    for _ in range(8):
        loop(steps)
    raw = time.perf_counter() - begun
    lock = "with" if getattr(sys, "_is_gil_enabled", lambda: True)() else "without"
    rows: list[Row] = []
    for executor in ("threads", "processes"):
        async with Session([backend(executor, 2)]) as session:
            await noops(session, 10)
            begun = time.perf_counter()
            await session.submit_tasks([ComputeTask(function=loop, args=(steps,)) for _ in range(8)])
            await session.wait_tasks()
            ours = time.perf_counter() - begun
        text = f"{ours:.2f} s, one after the other {raw:.2f} s ({lock} a global interpreter lock)"
        rows.append((f"eight loops of Python, 2 {executor}", text, ours / raw))
    return rows


async def linear(scale: float) -> list[Row]:
    """Compare the time of a task in one large submission and in small ones, in turn; and its processor time."""
    rows: list[Row] = []
    many = int(1_000_000 * scale)
    for executor in ("threads", "processes"):
        async with Session([backend(executor, 2)]) as session:
            await noops(session, 10_000)
            rounds = [(await noops(session, 10_000), await noops(session, many)) for _ in range(3)]
        wall = Spread.of(whole[0] / few[0] for few, whole in rounds)
        cpu = Spread.of(whole[1] / few[1] for few, whole in rounds)
        whole = Spread.of(whole[0] for _, whole in rounds)
        text = (
            f"{micro(whole)} a task, against submissions of 10,000: {wall.low:.2f} to {wall.high:.2f}; "
            f"of processor time in this process {cpu.median:.2f}"
        )
        rows.append((f"one submission of {many:,} on {executor}", text, wall.median))
    return rows


async def noops(session: Session, count: int) -> tuple[float, float]:
    start, cpu = time.perf_counter(), time.process_time()
    tasks = [ComputeTask(function=noop) for _ in range(count)]
    await session.submit_tasks(tasks)
    await session.wait_tasks(tasks)
    return (time.perf_counter() - start) / count, (time.process_time() - cpu) / count


async def makespan(scale: float) -> list[Row]:
    rows: list[Row] = []
    for executor in ("threads", "processes"):
        async with Session([backend(executor, 2)]) as session:
            await noops(session, 10)
            start = time.perf_counter()
            tasks = [ComputeTask(function=work, args=(0.1,)) for _ in range(100)]
            await session.submit_tasks(tasks)
            await session.wait_tasks(tasks)
            took = time.perf_counter() - start
        rows.append((f"100 tasks of 100 ms, 2 {executor}, against 5 s", f"{took:.3f} s", took / 5.0))
    return rows


async def memory(scale: float) -> list[Row]:
    count = int(200_000 * scale)
    async with Session([backend("threads", 2)]) as session:
        await noops(session, 1000)
        gc.collect()
        empty = resident()
        tasks = [ComputeTask(function=noop) for _ in range(count)]
        futures = await session.submit_tasks(tasks)
        queued = resident()
        await session.wait_tasks(tasks)
        del tasks, futures
        gc.collect()
        tasks_left = sum(isinstance(thing, ComputeTask) for thing in gc.get_objects())
    return [
        (f"memory of a queued task, of {count:,}", f"{(queued - empty) / count:.0f} bytes, its future included", None),
        ("tasks that session and backend hold once they have ended", str(tasks_left), None),
    ]


async def decide(scale: float) -> list[Row]:
    return [decisions.row(scale)]


async def chains(scale: float) -> list[Row]:
    """Compare tasks that wait for each other with independent ones."""
    count = int(20_000 * scale)
    async with Session([backend("threads", 2)]) as session:
        await noops(session, 10_000)
        alone, _ = await noops(session, count)
        rows: list[Row] = []
        for what, first in (("a chain", noop), ("a chain whose first task fails", int.from_bytes)):
            start = time.perf_counter()
            tasks = [ComputeTask(function=first)]
            for _ in range(count - 1):
                tasks.append(ComputeTask(function=noop, after=[tasks[-1]]))
            await session.submit_tasks(tasks)
            await session.wait_tasks()
            took = (time.perf_counter() - start) / count
            text = f"{took * 1e6:.1f} us a task, and {alone * 1e6:.1f} us where none waits for another"
            rows.append((f"{what}, of {count:,} on threads", text, took / alone))
        start = time.perf_counter()
        parents = [ComputeTask(function=noop) for _ in range(count)]
        await session.submit_tasks([*parents, ComputeTask(function=noop, after=parents)])
        await session.wait_tasks()
        took = (time.perf_counter() - start) / count
    return [*rows, (f"a fan of {count:,} into one on threads", f"{took * 1e6:.1f} us a task", took / alone)]


async def streams(scale: float) -> list[Row]:
    rows: list[Row] = []
    count = int(1_000_000 * scale)
    for executor in ("threads", "processes"):
        for form in ("map", "as_completed"):
            script = [sys.executable, "-m", "benchmarks.bench_local", "--stream", executor, form, str(count)]
            process = await asyncio.create_subprocess_exec(*script, stdout=asyncio.subprocess.PIPE)
            out, _ = await process.communicate()
            grown, took = json.loads(out)
            text = f"peak memory grows by {grown:.0f} MB; {took / count * 1e6:.1f} us a task"
            rows.append((f"{form} of {count:,} on {executor}", text, None))
    return rows


async def stream(executor: str, form: str, count: int) -> None:
    """Run in a process of its own: print the megabytes by which its peak memory grew, and the seconds."""
    async with Session([backend(executor, 2)]) as session:
        await noops(session, 1000)
        before, start, seen = peak(), time.perf_counter(), 0
        if form == "map":
            results: Any = session.map(abs, range(count))
        else:
            results = session.as_completed(ComputeTask(function=abs, args=(number,)) for number in range(count))
        async for _ in results:
            seen += 1
        assert seen == count
        print(json.dumps([peak() - before, time.perf_counter() - start]))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> float:
    """Return the most memory that this program has had, in megabytes; the figure of `getrusage` counts its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


MEASUREMENTS: dict[str, Callable[[float], Awaitable[list[Row]]]] = {
    "threads": noops_on_threads,
    "processes": noops_on_processes,
    "latency": latency,
    "alone": alone,
    "executables": executables,
    "makespan": makespan,
    "loops": loops,
    "linear": linear,
    "memory": memory,
    "streams": streams,
    "decisions": decide,
    "chains": chains,
    "large": large_on_processes,
    "neighbours": long_among_short,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASUREMENTS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="a tenth of the tasks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--stream", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.stream:
        asyncio.run(stream(chosen.stream[0], chosen.stream[1], int(chosen.stream[2])))
        return
    unknown = [name for name in chosen.names if name not in MEASUREMENTS]
    if unknown:
        parser.error(f"no measurement is named {', '.join(unknown)}")
    print(f"Python {platform.python_version()}, {platform.machine()}, {len(os.sched_getaffinity(0))} processors")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RHAPSODY_WORK_DIR"] = folder
        for name in chosen.names or MEASUREMENTS:
            for what, text, ratio in asyncio.run(MEASUREMENTS[name](0.1 if chosen.quick else 1.0)):
                shown = f"{ratio:6.3f}" if ratio is not None else "      "
                print(f"{shown}  {what}: {text}", flush=True)
                figures[what] = {"ratio": ratio, "text": text}
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
