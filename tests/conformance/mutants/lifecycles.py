"""Mutants that start, stop or behave badly."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.plugin import (
    BackendContext,
    Capacity,
    Deadlines,
    Event,
    Outcome,
    TaskBatch,
    TaskState,
    hookimpl,
)

from .base import LEFT, Mutant, mutant


@mutant("test_making_a_backend_starts_nothing", "do that in rhapsody_init")
class StartsItsEngineWhenItIsMade(Mutant):
    def __init__(self) -> None:
        super().__init__()
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="early engine")
        self.pool.submit(os.getpid).result()


@mutant("test_backend_starts_with_a_capacity", "wait in it until the engine is ready")
class ReturnsFromInitTooEarly(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        async def begin() -> None:
            await asyncio.sleep(0.05)
            await ConcurrentExecutionBackend.rhapsody_init(self, context)

        LEFT.append(asyncio.ensure_future(begin()))


@mutant("test_no_hook_blocks_the_loop", "It stood here")
class BlocksTheLoopForASecond(Mutant):
    blocked = 0

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        if self.blocked < 3:
            self.blocked += 1
            time.sleep(1.0)
        super().rhapsody_submit(batch)


@mutant("test_left_session_harms_no_other", "share nothing with another")
class EndsEveryInstanceWithOne(Mutant):
    all: ClassVar[list[EndsEveryInstanceWithOne]] = []  # the fault itself

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        await super().rhapsody_init(context)
        self.all.append(self)
        self.kept = context

    @hookimpl
    async def rhapsody_submit(self, batch: TaskBatch) -> None:
        self.uids = [task.uid for task in batch.tasks]
        super().rhapsody_submit(batch)

    @hookimpl
    async def rhapsody_shutdown(self) -> None:
        for other in self.all:
            error = RuntimeError("the engine was shut down")
            lost: list[Event] = [Outcome(uid, TaskState.FAILED, exception=error) for uid in other.uids]
            other.kept.events.put(lost)
        await super().rhapsody_shutdown()


@mutant("test_a_backend_can_be_started_again", "rhapsody_init must begin anew")
class CannotBeStartedAgain(Mutant):
    used = False

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        if self.used:
            raise RuntimeError("the engine was shut down")
        self.used = True
        await super().rhapsody_init(context)


@mutant("test_interrupted_start_leaves_nothing", "is called after a failed rhapsody_init too")
class ForgetsAnInterruptedStart(Mutant):
    ready = False

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        self.engine = subprocess.Popen(["sleep", "60"])
        LEFT.append(self.engine)
        await asyncio.sleep(0.2)
        self.ready = True
        await super().rhapsody_init(context)

    @hookimpl
    async def rhapsody_shutdown(self) -> None:
        if self.ready:
            self.engine.kill()
            self.engine.wait()
        await super().rhapsody_shutdown()


@mutant("test_shutdown_ends_within_its_deadline", "bound every wait in rhapsody_shutdown")
class HangsInShutdown(Mutant):
    deadlines = Deadlines(shutdown=0.5)

    @hookimpl
    async def rhapsody_shutdown(self) -> None:
        await super().rhapsody_shutdown()
        await asyncio.sleep(3600)


@mutant("test_shutdown_raises_nothing", "the cluster does not answer")
class RaisesInShutdown(Mutant):
    @hookimpl
    async def rhapsody_shutdown(self) -> None:
        await super().rhapsody_shutdown()
        raise RuntimeError("the cluster does not answer")


@mutant("test_shutdown_may_be_repeated", "it must find nothing to do")
class CanBeShutDownOnce(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        await super().rhapsody_init(context)
        self.engine: object = object()

    @hookimpl
    async def rhapsody_shutdown(self) -> None:
        await super().rhapsody_shutdown()
        del self.engine


@mutant("test_no_process_is_left", "sleep 60")
class LeaksAProcess(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        LEFT.append(subprocess.Popen(["sleep", "60"]))
        await super().rhapsody_init(context)


@mutant("test_no_process_is_left", "sleep 61")
class LeaksAProcessThatHasLeftItsParents(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        subprocess.run(["/bin/sh", "-c", "setsid sleep 61 >/dev/null 2>&1 &"], check=True)
        await super().rhapsody_init(context)


@mutant("test_killed_program_leaves_nothing", "sleep 62", patience=15.0)
class LeavesAProcessWhenKilled(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        self.helper = subprocess.Popen(["sleep", "62"])
        await super().rhapsody_init(context)

    @hookimpl
    async def rhapsody_shutdown(self) -> None:
        await super().rhapsody_shutdown()
        self.helper.kill()
        self.helper.wait()


@mutant("test_no_thread_is_left", "forgotten heartbeat")
class LeaksAThread(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        threading.Thread(target=time.sleep, args=(60,), name="forgotten heartbeat", daemon=True).start()
        await super().rhapsody_init(context)


@mutant("test_no_file_descriptor_is_left", "file descriptors open")
class LeaksADescriptor(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        LEFT.append(os.pipe())
        await super().rhapsody_init(context)


@mutant("test_no_file_is_left_outside", "belongs into context.sandbox")
class LeavesAFileInTheTemporaryFolder(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        Path(tempfile.mkdtemp(), "engine.log").write_text("started")
        await super().rhapsody_init(context)


@mutant("test_nothing_is_left_on_the_loop", "forgotten poll")
class LeavesATaskOnTheLoop(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        LEFT.append(asyncio.create_task(asyncio.sleep(60), name="forgotten poll"))
        await super().rhapsody_init(context)


@mutant("test_nothing_is_printed", "engine is ready")
class PrintsAGreeting(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        print("engine is ready", file=sys.stderr)  # noqa: T201  # the fault itself
        await super().rhapsody_init(context)


@mutant("test_nothing_is_printed", "banner of a worker")
class LetsItsEnginePrint(Mutant):
    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        subprocess.run(["/bin/sh", "-c", "echo banner of a worker"], check=True)
        await super().rhapsody_init(context)


@mutant("test_tasks_of_all_submitters_end", "Room comes back")
class LosesItsCapacity(Mutant):
    taken = 0

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        assert self._context is not None
        self.taken += len(batch)
        if self.taken > 30:
            self._context.set_capacity(Capacity(slots=0))
        super().rhapsody_submit(batch)
