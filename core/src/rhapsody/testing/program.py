"""A program that uses a backend, forks a child and waits to be killed: `python -m rhapsody.testing.program FOLDER`.

The folder has `program`, a pickle of what makes the backend and of the fields of tasks that do not end; the number
of the forked child is written into its file `child`. The child holds whatever the program has open, and lives on.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rhapsody.backends.base import ExecutionBackend
from rhapsody.model.task import ComputeTask
from rhapsody.sessions.session import Session


async def _run(new_backend: Callable[[], ExecutionBackend], fields: list[dict[str, Any]], folder: Path) -> None:
    backend = new_backend()
    async with Session(backends=[backend], work_dir=folder) as session:
        count = min(len(fields), session._runners[backend.name].slots)  # as the rig does, it reaches into core
        await session.submit_tasks([ComputeTask(**each) for each in fields[:count]])
        while len(list(folder.glob("began.*"))) < count:  # noqa: ASYNC110  # the tasks make them, in other processes
            await asyncio.sleep(0.01)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            while True:
                signal.pause()
        (folder / "child.new").write_text(str(child))
        (folder / "child.new").rename(folder / "child")
        await asyncio.Event().wait()


def main() -> None:
    """Run the program of the folder that the argument names."""
    folder = Path(sys.argv[1])
    sys.path[:], new_backend, fields = pickle.loads((folder / "program").read_bytes())
    asyncio.run(_run(pickle.loads(new_backend), fields, folder))


if __name__ == "__main__":
    main()
