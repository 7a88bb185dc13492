"""An ensemble on Dask: simulate with a program, analyse with functions, and follow the results as they come.

    python examples/dask_ensemble.py [address of a running scheduler]

Without an address it starts a cluster of two processes on this machine, and closes it at the end.
"""

from __future__ import annotations

import asyncio
import math
import sys

from rhapsody.api import ComputeTask, Session
from rhapsody.backends import DaskExecutionBackend

MEMBERS = 8
SAMPLES = 500

# A stand-in for a simulation: a program that prints numbers.
SIMULATE = "import random, sys; random.seed(int(sys.argv[1])); print(*(random.random() for _ in range(2000)))"


def estimate(output: str, first: int) -> float:
    """Estimate pi from some of the points of one member."""
    numbers = [float(word) for word in output.split()[2 * first : 2 * first + 4]]
    inside = sum(x * x + y * y < 1 for x, y in zip(numbers[::2], numbers[1::2], strict=True))
    return 4 * inside / (len(numbers) // 2)


async def main(address: str | None) -> None:
    if address:
        backend = DaskExecutionBackend(cluster=address)
    else:
        backend = DaskExecutionBackend(resources={"n_workers": 2, "threads_per_worker": 1})
    async with Session(backends=[backend]) as session:
        members = [
            ComputeTask(executable=sys.executable, arguments=["-c", SIMULATE, seed], backend_options={"retries": 1})
            for seed in range(MEMBERS)
        ]
        estimates: list[ComputeTask] = []
        for finished in asyncio.as_completed(await session.submit_tasks(members)):
            member = await finished
            analysis = [ComputeTask(function=estimate, args=(member.stdout, first)) for first in range(SAMPLES)]
            await session.submit_tasks(analysis)
            estimates += analysis
            print(f"{member.uid} ended on {member.ran_on}: {len(analysis)} analyses submitted")
        await session.wait_tasks(estimates)
        mean = math.fsum(task.return_value for task in estimates) / len(estimates)
        print(f"pi is about {mean:.3f}, from {len(estimates)} analyses of {len(members)} members")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
