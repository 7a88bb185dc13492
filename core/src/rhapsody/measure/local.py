"""The raw engines of the local backend: the executors of the standard library."""

from __future__ import annotations

import asyncio
import multiprocessing
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

from rhapsody.measure.raw import RawEngine
from rhapsody.seam.backend import AttachableBackend


@contextmanager
def raw_engine(backend: AttachableBackend, slots: int) -> Iterator[RawEngine]:
    """Yield an executor as wide as the backend: of processes where functions travel, else of threads."""
    remote = backend.capabilities.remote
    pool: Executor
    if remote:
        pool = ProcessPoolExecutor(slots, mp_context=multiprocessing.get_context("forkserver"))
    else:
        pool = ThreadPoolExecutor(slots)

    def run(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> None:
        futures = [pool.submit(function, *arguments) for arguments in calls]
        wait(futures)

    def commands(argvs: Sequence[Sequence[str]]) -> None:
        with ThreadPoolExecutor(slots) as threads:
            wait([threads.submit(subprocess.run, argv, capture_output=True, check=True) for argv in argvs])

    async def awaited(function: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, function)

    with pool:
        yield RawEngine(
            label=f"{type(pool).__name__}.submit + wait", run=run, commands=commands, awaited=awaited, most=100_000
        )
