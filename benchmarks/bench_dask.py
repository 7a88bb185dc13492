"""RHAPSODY on Dask against Dask alone, on one cluster, in one run.

    python -m benchmarks.bench_dask [--rounds 5] [--linear]

Each comparison runs both sides in turn, on the same LocalCluster of two processes with one thread each, and reports the
median of the ratio of their times. Raw Dask is what its own documentation does: `client.map` + `gather` for functions,
`client.submit` for executables. It is given 1,000 no-ops where RHAPSODY is given 20,000, because it takes 2 ms for
each: the time per task is compared.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
from distributed import Client, LocalCluster
from rhapsody.api import ComputeTask, Session
from rhapsody.backends import DaskExecutionBackend

from benchmarks.batches import READERS, compare_large, read

WORKERS = 2
RAW_NOOPS = 1_000


def noop(i: int) -> int:
    return i


def sleep(i: int) -> int:
    time.sleep(0.05)
    return i


def program(i: int) -> int:
    return subprocess.run(["/bin/true"], capture_output=True, check=False).returncode


async def ours(session: Session, tasks: Sequence[ComputeTask]) -> float:
    began = time.perf_counter()
    await session.submit_tasks(tasks)
    await session.wait_tasks(tasks)
    took = time.perf_counter() - began
    assert all(task.state == "DONE" for task in tasks)
    return took / len(tasks)


async def raw_map(client: Client, function: Callable[[int], int], count: int) -> float:
    began = time.perf_counter()
    await client.gather(client.map(function, range(count), pure=False))
    return (time.perf_counter() - began) / count


async def raw_submit(client: Client, function: Callable[[int], int], count: int) -> float:
    began = time.perf_counter()
    await client.gather([client.submit(function, i, pure=False) for i in range(count)])
    return (time.perf_counter() - began) / count


async def compare(
    title: str, rounds: int, mine: Callable[[], Awaitable[float]], raw: Callable[[], Awaitable[float]], goal: float
) -> None:
    await mine()
    await raw()
    pairs = []
    for number in range(rounds):
        if number % 2:
            pairs.append((await mine(), await raw()))
        else:
            theirs = await raw()
            pairs.append((await mine(), theirs))
    ratio = statistics.median(mine / raw for mine, raw in pairs)
    mine_ms, raw_ms = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"{title:34} {mine_ms:9.3f} {raw_ms:9.3f} {ratio:7.3f}  {goal:5.2f}  {'ok' if ratio <= goal else 'MISSED'}")


async def main(rounds: int, linear: bool) -> None:
    async with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0", asynchronous=True) as cluster,
        Client(cluster, asynchronous=True, set_as_default=False) as client,
        Session(backends=[DaskExecutionBackend(cluster=cluster)]) as session,
    ):
        print(f"{'ms per task, median':34} {'rhapsody':>9} {'raw dask':>9} {'ratio':>7}  {'goal':>5}")

        def functions(function: Callable[[int], int], count: int) -> Callable[[], Awaitable[float]]:
            return lambda: ours(session, [ComputeTask(function=function, args=(i,)) for i in range(count)])

        await compare("20,000 no-ops", rounds, functions(noop, 20_000), lambda: raw_map(client, noop, RAW_NOOPS), 0.03)
        await compare("200 sleeps of 50 ms", rounds, functions(sleep, 200), lambda: raw_map(client, sleep, 200), 1.05)
        await compare(
            "200 x /bin/true",
            rounds,
            lambda: ours(session, [ComputeTask(executable="/bin/true") for _ in range(200)]),
            lambda: raw_submit(client, program, 200),
            1.15,
        )

        async def scattered(array: np.ndarray) -> float:
            (future,) = await client.scatter([array])
            return sum(await client.gather(client.map(read, [future] * READERS, range(READERS), pure=False)))

        what, text, ratio = await compare_large("12 tasks with one array of 100 MB", session, scattered)
        print(f"{what:34} {text}; ratio {ratio:.3f}, goal 1.30 {'ok' if (ratio or 0) <= 1.3 else 'MISSED'}")
        if linear:
            pairs = [[1e6 * await functions(noop, count)() for count in (20_000, 200_000)] for _ in range(3)]
            few, many = map(statistics.median, zip(*pairs, strict=True))
            ratio = statistics.median(whole / part for part, whole in pairs)
            print(f"20,000 no-ops {few:.1f} µs each; 200,000 no-ops {many:.1f} µs each; ratio {ratio:.2f}")
        await asyncio.sleep(0.5)
        print(f"tasks and results left on the scheduler: {len(cluster.scheduler.tasks)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--linear", action="store_true", help="also 200,000 no-ops")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.rounds, arguments.linear))
