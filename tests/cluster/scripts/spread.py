"""Runs functions and executables on all nodes, cancels executables, and closes: `spread.py BACKEND FOLDER`."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from typing import Any

from backends import backend  # type: ignore[import-not-found]  # it is beside this script
from rhapsody.api import ComputeTask, Session, TaskState


def host(seconds: float) -> str:
    time.sleep(seconds)
    return socket.gethostname()


def show(word: str, *values: object) -> None:
    print(word, json.dumps(values), flush=True)


async def main(backend: Any) -> None:
    async with Session(backends=[backend], work_dir=sys.argv[2]) as session:
        functions = [ComputeTask(function=host, args=(0.3,)) for _ in range(16)]
        command = "sleep 0.3; hostname; echo error of $(hostname) >&2; exit 3"
        executables = [ComputeTask(executable="sh", arguments=["-c", command]) for _ in range(8)]
        tasks = [*functions, *executables]
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks, timeout=90)
        show("functions", *(task.return_value for task in functions))
        show("executables", *((task.exit_code, task.stdout, task.stderr) for task in executables))

        sleepers = [ComputeTask(executable="sleep", arguments=["4321"]) for _ in range(4)]
        await session.submit_tasks(sleepers)
        while any(task.state is not TaskState.RUNNING for task in sleepers):
            assert not any(task.is_final for task in sleepers), [str(task.exception) for task in sleepers]
            await asyncio.sleep(0.05)
        show("sleeping")
        await asyncio.to_thread(sys.stdin.readline)
        await session.cancel_tasks(sleepers)
        show("canceled", *(str(task.state) for task in sleepers))
        await asyncio.to_thread(sys.stdin.readline)
    show("closed")


if __name__ == "__main__":
    with backend(sys.argv[1]) as made:
        asyncio.run(main(made))
