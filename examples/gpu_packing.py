"""Trainings of several sizes, packed on the GPUs of a node; the node is simulated, so that it runs anywhere."""

import asyncio
import time
from collections import Counter

from rhapsody.api import ComputeTask, Resources, Session
from rhapsody.backends import ConcurrentExecutionBackend

GPUS, CORES = 4, 16
TRAIN = 'echo "$CUDA_VISIBLE_DEVICES"; sleep "$1"'  # in place of a program that computes on its GPUs


def training(seconds: float, **needs: float) -> ComputeTask:
    """Return a task that holds its GPUs for some seconds, and writes which they are."""
    return ComputeTask(executable="/bin/sh", arguments=["-c", TRAIN, "sh", seconds], resources=Resources(**needs))


async def main() -> None:
    large = [training(0.4, gpus_per_rank=4, cores_per_rank=8) for _ in range(2)]
    medium = [training(0.2, gpus_per_rank=1, cores_per_rank=2) for _ in range(12)]
    small = [training(0.1, gpus_per_rank=0.25) for _ in range(32)]
    tasks = [task for group in zip(medium, small[:12], small[12:24], strict=True) for task in group]
    tasks += [*large, *small[24:]]

    # On a node with GPUs leave max_workers and gpus out: what is there is found.
    async with Session(backends=[ConcurrentExecutionBackend(max_workers=CORES, gpus=GPUS)]) as session:
        began = time.monotonic()
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)
        took = time.monotonic() - began

    work = sum(float(task.arguments[-1]) * task.resources.gpus for task in tasks)
    print(f"{len(tasks)} trainings in {took:.1f} s; the GPUs could not do it in less than {work / GPUS:.1f} s")
    runs = Counter(gpu for task in tasks for gpu in task.stdout.strip().split(","))
    for gpu, count in sorted(runs.items()):
        print(f"GPU {gpu}: {count} trainings")
    assert all(task.stdout.strip() == "0,1,2,3" for task in large)


if __name__ == "__main__":
    asyncio.run(main())
