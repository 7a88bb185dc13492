"""A backend that holds what it is given, so that a test decides what becomes of it."""

from __future__ import annotations

import asyncio
from typing import Any

from rhapsody.api import ComputeTask, TaskState
from rhapsody.errors import BackendLostError
from rhapsody.plugin import (
    BackendCapabilities,
    BackendContext,
    BackendLost,
    Capacity,
    Deadlines,
    ExecutionBackend,
    Outcome,
    TaskBatch,
    hookimpl,
)


class Puppet(ExecutionBackend):
    """Holds what it is given; the test says what becomes of it."""

    capabilities = BackendCapabilities(options=None)
    deadlines = Deadlines(init=0.2, submit=0.2, cancel=0.2, shutdown=0.2)

    def __init__(self, name: str = "puppet") -> None:
        super().__init__(name)
        self.batches: list[TaskBatch] = []
        self.calls: list[str] = []
        self.units = 1000

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        self.calls.append("init")
        self.context = context
        context.set_capacity(Capacity(4, units=self.units))

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> Any:
        self.batches.append(batch)

    @hookimpl
    async def rhapsody_shutdown(self) -> None:
        self.calls.append("shutdown")

    @property
    def tasks(self) -> list[ComputeTask]:
        return [task for batch in self.batches for task in batch.tasks]

    def lose(self) -> None:
        self.context.events.put([BackendLost(BackendLostError(f"the engine of {self.name} is down"))])

    def finish(self, *tasks: ComputeTask) -> None:
        self.context.events.put([Outcome(task.uid, TaskState.DONE, "value") for task in tasks])


def some(count: int = 3) -> list[ComputeTask]:
    return [ComputeTask(function=int) for _ in range(count)]


async def held(backend: Puppet, count: int) -> None:
    while len(backend.tasks) < count:
        await asyncio.sleep(0)


async def canceled_from_within() -> Any:
    within = asyncio.ensure_future(asyncio.sleep(3600))
    asyncio.get_running_loop().call_soon(within.cancel)
    await within
