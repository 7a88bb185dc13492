"""What withdraws and stops tasks inside a Dask worker."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import rhapsody.worker
from distributed import Worker

from .on_worker import batches_of


async def withdraw(token: str, wanted: Mapping[int, list[str]], dask_worker: Worker) -> dict[int, list[str] | None]:
    """Withdraw tasks on this worker; see `WorkerBatches.withdraw`."""
    batches = batches_of(dask_worker, token)
    return {number: batches.withdraw(number, uids) for number, uids in wanted.items()}


async def stop(token: str, session: str, running: Mapping[int, list[str]], dask_worker: Worker) -> list[str]:
    """Stop executables of batches that have begun. Returns the uids of those that were running, or will not run."""
    batches = batches_of(dask_worker, token)

    async def stop_task(number: int, uid: str) -> bool:
        while batches.may_run(number, uid):  # it may have begun and not yet started its process
            if await asyncio.to_thread(rhapsody.worker.stop, session, uid):
                return True
            await asyncio.sleep(0.02)
        return False

    tasks = [(number, uid) for number, uids in running.items() for uid in uids]
    stopped = await asyncio.gather(*(stop_task(number, uid) for number, uid in tasks))
    return [uid for (_, uid), was_running in zip(tasks, stopped, strict=True) if was_running]


async def end_functions(token: str, running: Mapping[int, list[str]], dask_worker: Worker) -> bool:
    """End this worker's process, which runs one task at a time, if it is one of these. Returns if it is not."""
    batches = batches_of(dask_worker, token)
    for number, uids in running.items():
        for uid in uids:
            batches.end_process_of(number, uid)
    return True
