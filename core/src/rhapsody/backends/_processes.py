"""Runs units of functions in processes of its own.

Each worker process has a socket of its own and nothing in common with the others: no lock, no queue that a process
killed at a bad moment could leave broken. It is started by a fresh interpreter that never imports the user's main
script, so that scripts need no `if __name__ == "__main__"`. Frames come back while a unit runs, and the order of a
unit is known; so when a worker dies, what had ended keeps its result, the one task that was running fails, and the
others are run elsewhere. `docs/explanation/process-pool.md` has the measurements behind this.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from .._executable import has_ended
from .._guard import Guard
from ..batch import TaskBatch
from ..context import BackendContext
from ..errors import BackendLostError
from ..events import BackendLost, CancelResult, Event, Outcome, Returned
from ..states import TaskState
from ..task import ComputeTask
from ._pool_member import Member
from ._pool_page import Page, new_page

_BOOT: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from rhapsody.backends._pool_worker import main; main(int(sys.argv[1]), int(sys.argv[3]))"
)
_LEAVES: Final = 0.5  # seconds that an idle process has to leave by itself
_PAUSES: Final = (0.0, 0.1, 1.0)  # seconds before each attempt to replace a process
_STILLBORN: Final = 8  # processes in a row, beyond one for each slot, that may end before they have come up


class ProcessLane:
    """Worker processes, and the units that they run.

    Args:
        slots: processes.
        context: of the backend.
        guard: ends the processes should this one die.
    """

    def __init__(self, slots: int, context: BackendContext, guard: Guard) -> None:
        self.context = context
        self._slots = slots
        self._guard = guard
        self._workers: set[Member] = set()
        self._leaving: set[Member] = set()  # their lines are closed, and their processes are being reaped
        self._idle: deque[Member] = deque()
        self._waiting: deque[tuple[TaskBatch, bytes]] = deque()
        self._chores: set[asyncio.Task[Any]] = set()
        self._stillborn = 0  # processes in a row that ended before they had come up
        self._closing = False
        self._over = asyncio.Event()  # set by a close, for those that pause

    async def start(self) -> None:
        """Start the processes; they come up while this returns."""
        for _ in range(self._slots):
            await self._add_worker()

    def submit(self, batch: TaskBatch) -> None:
        """Run a unit on the next process that is idle."""
        payload = batch.encode()
        if self._idle:
            self._idle.popleft().run(batch, payload)
        else:
            self._waiting.append((batch, payload))

    async def cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Stop functions: by a word to the worker before they start, by ending the worker while they run."""
        wanted: dict[TaskBatch, list[ComputeTask]] = {}
        for task in tasks:
            wanted.setdefault(task._unit, []).append(task)
        holders = {member.batch: member for member in self._leaving | self._workers if member.batch is not None}
        results: dict[str, CancelResult] = {}
        stops: list[tuple[Member, ComputeTask]] = []
        for batch, group in wanted.items():
            member = holders.get(batch)
            if member is None:
                results |= self._withdraw(batch, group)
                continue
            for task in group:
                if member in self._leaving:
                    member.unwanted.add(task.uid)
                elif task is not member.current:
                    member.skip(task)
                else:
                    stops.append((member, task))
                results[task.uid] = CancelResult.NEVER_STARTED
        told = await asyncio.gather(*(member.stop(task) for member, task in stops))
        results |= {task.uid: result for (_, task), result in zip(stops, told, strict=True)}
        return results

    async def close(self) -> None:
        """End the processes, and with each whatever its tasks left running."""
        self._closing = True
        self._waiting.clear()
        if asyncio.get_running_loop() is not self.context.loop:  # that one is gone, and tells nothing any more
            for member in self._workers | self._leaving:
                member.kill()
                member.process.wait()
                member.close()
                self._guard.unwatch(member.process.pid)
            return
        self._over.set()
        for member in list(self._workers):
            if member.batch is not None or not member.ready:
                member.kill()
            member.close()
        while self._workers or self._chores:  # noqa: ASYNC110  # at the end, a few milliseconds in all
            await asyncio.sleep(0.002)

    # -- what the members call ---------------------------------------------------------------------------------------

    def is_idle(self, member: Member) -> None:
        """Give a worker its next unit."""
        if self._waiting:
            member.run(*self._waiting.popleft())
        else:
            self._idle.append(member)

    def has_left(self, member: Member) -> None:
        """A worker's line is closed: see to its process, its tasks, and a successor."""
        if member in self._workers:
            self._workers.discard(member)
            self._leaving.add(member)
            with contextlib.suppress(ValueError):
                self._idle.remove(member)
            self.do(self._bury(member))

    def do(self, chore: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine beside; `close` waits for it."""
        task = asyncio.get_running_loop().create_task(chore)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    # ----------------------------------------------------------------------------------------------------------------

    async def _add_worker(self) -> None:
        path = json.dumps([entry for entry in sys.path if isinstance(entry, str)])  # the import system ignores others
        ours, theirs = socket.socketpair()
        memory = new_page()
        page = Page(memory)
        try:
            with theirs:
                process = subprocess.Popen(  # noqa: ASYNC220  # two milliseconds, and it needs no child watcher
                    [sys.executable, "-c", _BOOT, str(theirs.fileno()), path, str(memory)],
                    stdin=subprocess.DEVNULL,
                    env=self._guard.environment(),
                    pass_fds=[theirs.fileno(), memory],
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(memory)
        member = Member(self, process, page)
        try:
            self._guard.watch(process.pid)
            ours.setblocking(False)
            await asyncio.get_running_loop().connect_accepted_socket(lambda: member, ours)
        except BaseException:
            member.kill()
            process.wait()
            self._guard.unwatch(process.pid)
            ours.close()
            raise
        self._workers.add(member)
        if self._closing:  # meanwhile
            member.kill()
            member.close()
        else:
            self.is_idle(member)

    async def _bury(self, member: Member) -> None:
        process = member.process
        patience = time.monotonic() + (_LEAVES if member.batch is None else 0.0)
        try:
            while not has_ended(process):  # it leaves in order if it was idle; otherwise there is nothing to wait for
                if time.monotonic() > patience:
                    member.kill()
                await asyncio.sleep(0.001)
        finally:  # also where the loop is torn down
            member.kill()
            process.wait()
            self._guard.unwatch(process.pid)
            self._leaving.discard(member)
        if self._closing:
            return
        self.context.events.put(member.events_of_loss())
        if not member.unwanted:
            self.context.log.warning("worker_lost", backend=self.context.backend, exit_code=process.returncode)
        self._stillborn = 0 if member.ready else self._stillborn + 1
        if self._stillborn > self._slots + _STILLBORN:
            self._give_up(f"its worker processes end before they have come up (exit code {process.returncode})")
        else:
            await self._replace()

    async def _replace(self) -> None:
        patience = min(1.0, 0.01 * 2**self._stillborn) if self._stillborn else 0.0  # whatever ends them may pass
        for pause in _PAUSES:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), patience + pause)
            if self._closing:
                return
            try:
                await self._add_worker()
                return
            except OSError as error:
                problem = error
        if not self._workers:
            self._give_up(f"no worker process can be started: {problem}")

    def _give_up(self, why: str) -> None:
        self._closing = True
        self._waiting.clear()
        self.context.events.put([BackendLost(BackendLostError(f"backend {self.context.backend!r} is lost: {why}"))])

    def _withdraw(self, batch: TaskBatch, group: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Cancel tasks of a unit that waits for a process; the others go back to the backlog."""
        for index, (waiting, _) in enumerate(self._waiting):
            if waiting is batch:
                del self._waiting[index]
                outcomes: list[Event] = [Outcome(task.uid, TaskState.CANCELED) for task in group]
                canceled = set(group)
                outcomes.append(Returned([task.uid for task in batch.shipped if task not in canceled]))
                self.context.events.put(outcomes)
                return dict.fromkeys((task.uid for task in group), CancelResult.NEVER_STARTED)
        return dict.fromkeys((task.uid for task in group), CancelResult.TOO_LATE)  # the word of its end is on its way
