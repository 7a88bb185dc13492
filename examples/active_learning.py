"""Rounds of simulations, each round around the best of the round before; results are taken as they come."""

import asyncio
import math
import random

from rhapsody.api import ComputeTask, Session


def energy(x: float, y: float) -> float:
    """Return the energy of a configuration: a landscape with many dips, whose lowest is at (0, 0)."""
    return 20 + x * x + y * y - 10 * (math.cos(2 * math.pi * x) + math.cos(2 * math.pi * y))


async def main() -> None:
    generator = random.Random(1)
    best, at, width = math.inf, (3.0, -2.0), 2.0
    async with Session() as session:
        for round_number in range(1, 9):
            points = [(generator.gauss(at[0], width), generator.gauss(at[1], width)) for _ in range(300)]
            futures = await session.submit_tasks(ComputeTask(function=energy, args=point) for point in points)
            for ended in asyncio.as_completed(futures):
                task = await ended
                if task.return_value < best:
                    best, at = task.return_value, task.args
            width *= 0.6
            print(f"round {round_number}: energy {best:.5f} at ({at[0]:+.4f}, {at[1]:+.4f})")


if __name__ == "__main__":
    asyncio.run(main())
