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
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from .. import worker
from .._guard import Guard, kill_group
from ..batch import TaskBatch
from ..context import BackendContext
from ..errors import WorkerLostError
from ..events import CancelResult, Event, Outcome, Returned, Started
from ..states import TaskState
from ..task import ComputeTask
from ._pool_worker import _SKIP, _UNIT, LENGTH

_BOOT: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from rhapsody.backends._pool_worker import main; main(int(sys.argv[1]))"
)


class _Worker(asyncio.Protocol):
    """This end of one worker process: what it runs, and what has come back of it."""

    def __init__(self, lane: ProcessLane, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.batch: TaskBatch | None = None
        self.began = False  # the worker has the unit: its first task may have started
        self.ended = 0  # tasks of the unit that have ended; the next one is running
        self.canceled: set[str] = set()  # uids for which it is being killed
        self._lane = lane
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    @property
    def current(self) -> ComputeTask | None:
        """The task that it runs, as far as is known."""
        if self.batch is None or not self.began or self.ended >= len(self.batch.shipped):
            return None
        return self.batch.shipped[self.ended]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, kind: bytes, body: bytes) -> None:
        assert self._transport is not None
        self._transport.write(LENGTH.pack(len(body) + 1) + kind)
        self._transport.write(body)

    def run(self, batch: TaskBatch, payload: bytes) -> None:
        self.batch, self.began, self.ended = batch, False, 0
        self.send(_UNIT, payload)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        start, end, finished = 0, 0, False
        events: list[Event] = []
        while end + LENGTH.size <= len(received):
            (length,) = LENGTH.unpack_from(received, end)
            if length == 2**64 - 1:
                self.began = True
                start = end = end + LENGTH.size
            elif length == 0:
                finished = True
                break
            elif end + LENGTH.size + length > len(received):
                break
            else:
                end += LENGTH.size + length
        if end > start:
            assert self.batch is not None
            outcomes = self.batch.decode(bytes(received[start:end]))
            self.ended += len(outcomes)
            events += outcomes
        del received[: end + LENGTH.size if finished else end]
        if (current := self.current) is not None and not finished:
            events.append(Started(current.uid, time.time(), f"{worker.where().partition(':')[0]}:{self.process.pid}"))
        if events:
            self._lane.context.events.put(events)
        if finished:
            self.batch = None
            self._lane.is_idle(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._lane.has_left(self)


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
        self._workers: set[_Worker] = set()
        self._idle: deque[_Worker] = deque()
        self._waiting: deque[tuple[TaskBatch, bytes]] = deque()
        self._reapers: set[asyncio.Task[None]] = set()
        self._closing = False

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
        """Stop functions: by a word to the worker before they start, by killing the worker while they run."""
        results: dict[str, CancelResult] = {}
        outcomes: list[Event] = []
        for task in tasks:
            holder = next((w for w in self._workers if w.batch is not None and task in w.batch.tasks), None)
            if holder is None:  # its unit waits for a process that is coming up: it is told when that has it
                results[task.uid] = self._withdraw(task, outcomes)
            elif holder.current is task:
                holder.canceled.add(task.uid)
                kill_group(holder.process.pid, signal.SIGKILL)
                results[task.uid] = CancelResult.STOPPED
            else:
                holder.send(_SKIP, f"{self.context.session}\0{task.uid}".encode())
                results[task.uid] = CancelResult.NEVER_STARTED
        self.context.events.put(outcomes)
        return results

    async def close(self) -> None:
        """End the processes, and with each whatever its tasks left running."""
        self._closing = True
        self._waiting.clear()
        for member in list(self._workers):
            if member.batch is None:
                member.close()  # it sees the end of the line, and leaves by itself
            else:
                kill_group(member.process.pid, signal.SIGKILL)
        while self._workers or self._reapers:  # noqa: ASYNC110  # at the end, a few milliseconds in all
            await asyncio.sleep(0.002)

    async def _add_worker(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(  # noqa: ASYNC220  # two milliseconds, and it needs no child watcher
                [sys.executable, "-c", _BOOT, str(theirs.fileno()), json.dumps(sys.path)],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._guard.watch(process.pid)
        ours.setblocking(False)
        member = _Worker(self, process)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: member, ours)
        self._workers.add(member)
        self.is_idle(member)

    def is_idle(self, member: _Worker) -> None:
        """Give a worker its next unit."""
        if self._waiting:
            member.run(*self._waiting.popleft())
        else:
            self._idle.append(member)

    def has_left(self, member: _Worker) -> None:
        """A worker's line is closed: see to its process, its tasks, and a successor."""
        self._workers.discard(member)
        with contextlib.suppress(ValueError):
            self._idle.remove(member)
        reaper = asyncio.get_running_loop().create_task(self._bury(member))
        self._reapers.add(reaper)
        reaper.add_done_callback(self._reapers.discard)

    async def _bury(self, member: _Worker) -> None:
        process = member.process
        patience = time.monotonic() + 0.5 if member.batch is None else 0.0
        while process.poll() is None:  # it leaves in order if it was idle; otherwise there is nothing to wait for
            if time.monotonic() > patience:
                kill_group(process.pid, signal.SIGKILL)
            await asyncio.sleep(0.001)
        kill_group(process.pid, signal.SIGKILL)  # what its tasks left running
        self._guard.unwatch(process.pid)
        if self._closing:
            return
        self.context.log.warning("worker_lost", backend=self.context.backend, exit_code=process.returncode)
        if member.batch is not None:
            self.context.events.put(self._events_of_loss(member, member.batch))
        await self._add_worker()

    def _events_of_loss(self, member: _Worker, batch: TaskBatch) -> list[Event]:
        left = list(batch.shipped[member.ended :])
        events: list[Event] = []
        if member.began and left:
            task = left.pop(0)
            if task.uid in member.canceled:
                events.append(Outcome(task.uid, TaskState.CANCELED))
            else:
                code = member.process.returncode
                how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                error = WorkerLostError(
                    f"task {task.uid}: its worker process {member.process.pid} of backend "
                    f"{self.context.backend!r} {how}"
                )
                events.append(Outcome(task.uid, TaskState.FAILED, exception=error))
        events.append(Returned([task.uid for task in left]))
        return events

    def _withdraw(self, task: ComputeTask, outcomes: list[Event]) -> CancelResult:
        for index, (batch, _) in enumerate(self._waiting):
            if task in batch.tasks:
                del self._waiting[index]
                outcomes.append(Outcome(task.uid, TaskState.CANCELED))
                outcomes.append(Returned([other.uid for other in batch.shipped if other is not task]))
                return CancelResult.NEVER_STARTED
        return CancelResult.CANNOT_STOP
