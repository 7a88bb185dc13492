"""Functions and executables on Dragon, on a laptop or in an allocation.

python examples/dragon_ensemble.py            starts a runtime on this machine, and ends it
dragon examples/dragon_ensemble.py            inside an allocation: uses the runtime on all of its nodes
"""

import asyncio
import math

from rhapsody.api import ComputeTask, Session
from rhapsody.backends import get_backend


def energy(angle: float) -> float:
    """Stand for a simulation."""
    return math.cos(angle) + 0.5 * math.cos(3 * angle)


async def main() -> None:
    async with Session(backends=[get_backend("dragon")]) as session:
        angles = [math.pi * step / 1000 for step in range(1000)]
        sweep = [ComputeTask(function=energy, args=(angle,)) for angle in angles]
        host = ComputeTask(executable="uname", arguments=["-s"])
        await session.submit_tasks([*sweep, host])
        await session.wait_tasks()

        best = min(sweep, key=lambda task: task.return_value)
        print(f"{len(sweep)} angles on {host.stdout.strip()}: the least energy is {best.return_value:.4f}")


asyncio.run(main())
