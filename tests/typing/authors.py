"""The interface for authors of backends, as an author writes it: `make types` checks this file, and nothing runs it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, assert_type

from rhapsody.api import Session
from rhapsody.plugin import (
    BackendCapabilities,
    BackendContext,
    Batching,
    CancelResult,
    Capacity,
    ComputeTask,
    Deadlines,
    ExecutionBackend,
    Outcome,
    Returned,
    Started,
    TaskBatch,
    TaskState,
    Transition,
    hookimpl,
)
from rhapsody.testing import BackendConformanceTests, die
from rhapsody.worker import run_batch


class Engine(ExecutionBackend):
    interface_version = 1
    capabilities = BackendCapabilities(cancel_functions=True)
    deadlines = Deadlines(shutdown=5.0)
    batching = Batching(target=0.5)

    def __init__(self, name: str = "engine", options: Mapping[str, Any] | None = None) -> None:
        super().__init__(name)
        self.context: BackendContext | None = None

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        self.context = context
        assert_type(context.sandbox, Path)
        assert_type(context.loop, asyncio.AbstractEventLoop)
        context.set_capacity(Capacity(2))

    @hookimpl
    def rhapsody_validate(self, tasks: Sequence[ComputeTask]) -> None:
        assert_type(tasks[0], ComputeTask)

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> Awaitable[None] | None:
        assert self.context is not None
        frames = run_batch(batch.encode())
        self.context.events.put(batch.decode(frames))
        first = batch.tasks[0]
        self.context.events.put([Started(first.uid, 0.0)])
        self.context.events.put([Outcome(first.uid, TaskState.DONE, return_value=1), Returned([first.uid])])
        return None

    @hookimpl
    async def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> Mapping[str, CancelResult]:
        return {task.uid: CancelResult.STOPPED for task in tasks}

    @hookimpl
    async def rhapsody_shutdown(self, wait: bool) -> None:
        assert_type(wait, bool)


class TestEngine(BackendConformanceTests):
    title = "engine"
    patience = 5.0
    kill_worker = staticmethod(die)
    options: ClassVar[dict[str, Any]] = {"priority": 1}


def new_backend() -> Callable[[], ExecutionBackend]:
    return lambda: Engine()


class Observer:
    @hookimpl
    def rhapsody_tasks_changed(self, session: Session, transitions: Sequence[Transition]) -> None:
        for change in transitions:
            assert_type(change.task, ComputeTask)
            assert_type((change.old, change.new, change.at), tuple[TaskState, TaskState, float])
