"""An ensemble whose simulations fail, crash and are tried again, and an analysis of each that depends on it."""

import asyncio
import math
import os
import tempfile
from pathlib import Path

from rhapsody.api import ComputeTask, Retry, Session
from rhapsody.backends import ConcurrentExecutionBackend

MEMBERS = 12


def simulate(member: int, folder: str) -> list[float]:
    """Return a trajectory; member 3 finds no licence at first, member 5 crashes at first, member 7 never converges."""
    is_first = not (mark := Path(folder, str(member))).exists()
    mark.touch()
    if member == 3 and is_first:
        raise ConnectionError("no licence is free")
    if member == 5 and is_first:
        os.abort()
    if member == 7:
        raise ArithmeticError("no convergence")
    return [math.sin(member + step / 10) for step in range(1000)]


def analyse(member: int, trajectory: list[float]) -> tuple[int, float]:
    """Return the mean square of a trajectory."""
    return member, sum(value * value for value in trajectory) / len(trajectory)


async def main() -> None:
    retry = Retry(attempts=3, delay=0.1, on=["lost", ConnectionError])
    with tempfile.TemporaryDirectory() as folder:
        async with Session(backends=[ConcurrentExecutionBackend(executor="processes", max_workers=2)]) as session:
            simulations, analyses = [], []
            for member in range(MEMBERS):
                simulation = ComputeTask(
                    function=simulate,
                    args=(member, folder),
                    uid=f"simulation.{member}",
                    retries=retry,
                    tag="simulation",
                )
                simulations.append(simulation)
                analyses.append(ComputeTask(function=analyse, args=(member, simulation)))
            at_the_end = ComputeTask(executable="echo", arguments=["all have ended"], after_any=analyses)
            await session.submit_tasks([at_the_end, *analyses, *simulations])
            await session.wait_tasks()

    for simulation in simulations:
        if len(simulation.attempts) > 1:
            errors = [type(attempt.error).__name__ for attempt in simulation.attempts if attempt.error is not None]
            print(f"{simulation.uid} is {simulation.state} after {', '.join(errors)}")
    for analysis in analyses:
        if analysis.exception is not None:
            print(analysis.exception)
    done = [analysis.return_value for analysis in analyses if analysis.state == "DONE"]
    least = min(value for _, value in done)
    print(f"{len(done)} of {MEMBERS} analyses: {least:.3f} is the least; {str(at_the_end.stdout).strip()}")


if __name__ == "__main__":
    asyncio.run(main())
