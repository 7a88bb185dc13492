"""Runs short tasks on all nodes while the test takes one away: `lost.py BACKEND FOLDER`.

Each task leaves a file with its name and host as it begins.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from backends import backend  # type: ignore[import-not-found]  # it is beside this script
from rhapsody.api import ComputeTask, Session, TaskState

FUNCTIONS, EXECUTABLES = 40, 20
MARKS = Path("marks").resolve()


def mark(name: str, seconds: float) -> str:
    with (MARKS / name).open("a") as file:
        print(socket.gethostname(), file=file)
    time.sleep(seconds)
    return socket.gethostname()


def show(word: str, *values: object) -> None:
    print(word, json.dumps(values), flush=True)


def hosts() -> dict[str, list[str]]:
    return {file.name: file.read_text().split() for file in MARKS.iterdir()}


async def main(backend: Any) -> None:
    async with Session(backends=[backend], work_dir=sys.argv[2]) as session:
        functions = [ComputeTask(function=mark, args=(f"f{n}", 0.7)) for n in range(FUNCTIONS)]
        command = 'hostname >> "$0" && sleep 1.1'
        executables = [
            ComputeTask(executable="sh", arguments=["-c", command, str(MARKS / f"e{n}")]) for n in range(EXECUTABLES)
        ]
        tasks = [task for pair in zip(functions, executables, strict=False) for task in pair]
        tasks += functions[EXECUTABLES:]
        await session.submit_tasks(tasks)
        while len({host for begun in hosts().values() for host in begun}) < 2:
            await asyncio.sleep(0.1)
        show("running")
        began = time.monotonic()
        await asyncio.to_thread(sys.stdin.readline)
        await session.wait_tasks(tasks)
        show("seconds", round(time.monotonic() - began, 1))
        show("states", Counter(str(task.state) for task in tasks))
        failed = [task for task in tasks if task.state is TaskState.FAILED]
        begun = hosts()
        names = {task.uid: f"f{n}" for n, task in enumerate(functions)} | {
            task.uid: f"e{n}" for n, task in enumerate(executables)
        }
        show("failed", *((type(t.exception).__name__, str(t.exception), begun.get(names[t.uid], [])) for t in failed))
        show("twice", *(where for where in begun.values() if len(where) > 1))
        late = ComputeTask(function=socket.gethostname)
        await session.submit_tasks([late])
        await session.wait_tasks([late])
        show("late", late.return_value)
    show("closed")


if __name__ == "__main__":
    MARKS.mkdir(exist_ok=True)
    for old in MARKS.iterdir():
        old.unlink()
    with backend(sys.argv[1]) as made:
        asyncio.run(main(made))
