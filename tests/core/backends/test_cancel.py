"""Cancel on the local backend."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from pathlib import Path

import pytest
from rhapsody.api import CancelResult, ComputeTask, TaskCanceledError, TaskState

from ..local import KINDS, gone, local

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.mark.parametrize("kind", KINDS)
async def test_cancel_reports_each_task(kind: str) -> None:
    """Cancel returns what became of each task."""
    release = threading.Event()
    async with local(kind, 1) as session:
        done = ComputeTask(function=int)
        await session.submit_tasks([done])
        await done
        long = ComputeTask(function=release.wait if kind == "threads" else time.sleep, args=(60,))
        waiting = [ComputeTask(function=int) for _ in range(3)]
        await session.submit_tasks([long, *waiting])
        while long.state is not TaskState.RUNNING:
            await asyncio.sleep(0.01)
        results = await session.cancel_tasks([done, long, *waiting])
        assert results[done.uid] is CancelResult.TOO_LATE
        assert [results[task.uid] for task in waiting] == [CancelResult.NEVER_STARTED] * 3
        with pytest.raises(TaskCanceledError, match=waiting[0].uid):
            await waiting[0]
        if kind == "threads":  # nothing can stop a function in a thread: it keeps its real end
            assert results[long.uid] is CancelResult.CANNOT_STOP
            release.set()
            assert (await long).return_value is True
        else:
            assert results[long.uid] is CancelResult.STOPPED
            assert long.state is TaskState.CANCELED  # type: ignore[comparison-overlap]  # the cancel has changed it
        after = ComputeTask(function=int)
        await session.submit_tasks([after])
        assert (await after).return_value == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_cancel_stops_the_whole_group(kind: str, tmp_path: Path) -> None:
    """A canceled executable is stopped with its whole process group."""
    pids = tmp_path / "pids"
    script = f"trap '' TERM; sh -c \"trap '' TERM; echo $$ >> {pids}; sleep 60\" & echo $$ >> {pids}; wait; sleep 60"
    async with local(kind) as session:
        task = ComputeTask(executable=script, shell=True)
        await session.submit_tasks([task])
        while not pids.exists() or len(pids.read_text().split()) < 2:
            await asyncio.sleep(0.01)
        assert await session.cancel_tasks([task]) == {task.uid: CancelResult.STOPPED}
        assert (task.state, task.exit_code) == (TaskState.CANCELED, -signal.SIGKILL)
    for pid in pids.read_text().split():
        await gone(int(pid))
