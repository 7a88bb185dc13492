"""A program for each point of a grid: find the damping that brings an oscillator to rest soonest."""

import asyncio
import sys

from rhapsody.api import ComputeTask, Session

SIMULATION = """
import sys

damping, step = float(sys.argv[1]), 1e-3
position, velocity, time, last = 1.0, 0.0, 0.0, 0.0
while time < 30:
    velocity -= (position + 2 * damping * velocity) * step
    position += velocity * step
    time += step
    if abs(position) > 0.01:
        last = time
print(last)
"""


async def main() -> None:
    dampings = [round(0.2 + 0.1 * n, 1) for n in range(14)]
    async with Session() as session:
        runs = [
            ComputeTask(executable=sys.executable, arguments=["-c", SIMULATION, damping], uid=f"damping-{damping}")
            for damping in dampings
        ]
        await session.submit_tasks(runs)
        await session.wait_tasks(runs)

    settled = {damping: float(run.stdout) for damping, run in zip(dampings, runs, strict=True)}
    for damping, seconds in settled.items():
        print(f"damping {damping:.1f}: at rest after {seconds:5.2f} s  {'#' * round(seconds)}")
    best = min(settled, key=settled.__getitem__)
    print(f"best: {best}")


if __name__ == "__main__":
    asyncio.run(main())
