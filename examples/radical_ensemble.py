"""Executables and functions on one pilot: on this machine, or on an HPC machine.

    python examples/radical_ensemble.py                      a pilot on this machine
    python examples/radical_ensemble.py ornl.frontier abc123 a pilot of one node there, charged to project abc123

RADICAL-Pilot takes about 20 seconds to start a pilot; what it runs after that shares it.
"""

import asyncio
import math
import sys

from rhapsody.api import ComputeTask, Session
from rhapsody.backends import get_backend


def energy(angle: float) -> float:
    """Stand for a simulation."""
    return math.cos(angle) + 0.5 * math.cos(3 * angle)


def pilot(arguments: list[str]) -> dict[str, object]:
    """Describe the pilot, in RADICAL-Pilot's words."""
    if not arguments:
        return {"cores": 2, "runtime": 10}
    resource, project = arguments
    return {"resource": resource, "project": project, "nodes": 1, "runtime": 30}


async def main() -> None:
    async with Session(backends=[get_backend("radical", resources=pilot(sys.argv[1:]))]) as session:
        angles = [math.pi * step / 1000 for step in range(1000)]
        sweep = [ComputeTask(function=energy, args=(angle,)) for angle in angles]
        prepared = ComputeTask(
            executable="sh",
            arguments=["-c", "echo $GREETING from $(uname -n)"],
            backend_options={"pre_exec": ["export GREETING=hello"]},
        )
        await session.submit_tasks([prepared, *sweep])
        await session.wait_tasks()

        best = min(sweep, key=lambda task: task.return_value)
        print(prepared.stdout.strip())
        print(f"{len(sweep)} angles: the least energy is {best.return_value:.4f}")


asyncio.run(main())
