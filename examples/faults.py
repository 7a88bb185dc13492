"""Tasks that fail, that take too long and are canceled, and what the others do meanwhile: nothing unusual."""

import asyncio
from collections import Counter

from rhapsody.api import ComputeTask, Session


def half(n: int) -> int:
    """Return half of an even number."""
    if n % 2:
        raise ValueError(f"{n} is odd")
    return n // 2


async def main() -> None:
    async with Session() as session:
        halves = [ComputeTask(function=half, args=(n,)) for n in range(10)]
        crash = ComputeTask(executable="sh", arguments=["-c", "echo no space left >&2; exit 28"])
        endless = ComputeTask(executable="sleep", arguments=[3600])
        everything = [*halves, crash, endless]
        await session.submit_tasks(everything)
        try:
            await session.wait_tasks(timeout=1)
        except TimeoutError as error:
            print(error)
            answers = await session.cancel_tasks([endless])
            print("the endless one:", answers[endless.uid])
        await session.wait_tasks()

    states = Counter(str(task.state) for task in everything)
    print(", ".join(f"{count} {state}" for state, count in sorted(states.items())))
    for task in everything:
        if task.state == "FAILED":
            print(f"{task.uid}: {type(task.exception).__name__}: {task.exception}".splitlines()[0])


if __name__ == "__main__":
    asyncio.run(main())
