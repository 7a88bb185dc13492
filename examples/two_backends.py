"""Functions on processes and executables on threads in one session; a task names its backend."""

import asyncio
import os

from rhapsody.api import ComputeTask, Session, get_backend


def primes(below: int) -> int:
    """Count the primes below a number, the slow way."""
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(2, below))


async def main() -> None:
    backends = {
        "cores": get_backend("concurrent", executor="processes"),
        "executables": get_backend("concurrent", max_workers=4),
    }
    async with Session(backends=backends) as session:
        counts = [ComputeTask(function=primes, args=(below,), backend="cores") for below in range(1000, 20_000, 1000)]
        dates = [
            ComputeTask(executable="date", environment={"TZ": zone}, backend="executables")
            for zone in ("UTC", "Asia/Tokyo", "America/New_York")
        ]
        await session.submit_tasks([*counts, *dates])
        await session.wait_tasks()

    print("primes:", [count.return_value for count in counts])
    print("in processes:", len({count.ran_on for count in counts}), "besides", os.getpid())
    for date in dates:
        print(date.environment["TZ"], date.stdout.strip())


if __name__ == "__main__":
    asyncio.run(main())
