"""Runs batches of functions in processes of its own.

Each worker process has a socket of its own and nothing in common with the others: no lock, no queue that a process
killed at a bad moment could leave broken. It is started by a fresh interpreter that never imports the user's main
script, so that scripts need no `if __name__ == "__main__"`. Frames come back while a batch runs, and the order of a
batch is known; so when a worker dies, what had ended keeps its result, the one task that was running fails, and the
others are run elsewhere. `docs/explanation/process-pool.md` has the measurements behind this.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final

from rhapsody.backends.local import machine
from rhapsody.backends.local.pool.main import START
from rhapsody.backends.local.pool.member import Member
from rhapsody.backends.local.pool.options import WorkerOptions
from rhapsody.errors import BackendLostError
from rhapsody.model.outcome import CancelResult, Outcome, Returned
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.protocol.batch import TaskBatch
from rhapsody.protocol.imports import search_path
from rhapsody.seam.channel import BackendLost, Event
from rhapsody.seam.context import BackendContext
from rhapsody.worker.children import has_ended
from rhapsody.worker.guard_process import Guard
from rhapsody.worker.progress import FramePage, new_page
from rhapsody.worker.shortage import is_shortage, warn

_BOOT: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from rhapsody.backends.local.pool.main import main; main(int(sys.argv[1]), int(sys.argv[3]))"
)

_THREADS: Final = (b"OMP_NUM_THREADS", b"OPENBLAS_NUM_THREADS", b"MKL_NUM_THREADS", b"NUMEXPR_NUM_THREADS")
_LEAVES: Final = 3.0  # seconds that an idle process has to end as a program does: atexit, files, temporary folders
_PAUSES: Final = (0.0, 0.1, 1.0)  # seconds before each attempt to replace a process
_FAILED_STARTS: Final = 8  # processes in a row, beyond one for each slot, that may end before they have come up


class ProcessLane:
    """Worker processes, and the batches that they run.

    Args:
        slots: processes.
        context: of the backend.
        guard: ends the processes should this one die.
        options: of the processes.
    """

    def __init__(self, slots: int, context: BackendContext, guard: Guard, options: WorkerOptions) -> None:
        self.context = context
        self._slots = slots
        self._guard = guard
        self._options = options
        self._workers: set[Member] = set()
        self._leaving: set[Member] = set()  # their lines are closed, and their processes are being reaped
        self._idle: deque[Member] = deque()
        self._waiting: deque[tuple[TaskBatch, bytes]] = deque()
        self._chores: set[asyncio.Task[Any]] = set()
        self._failed_starts = 0  # processes in a row that ended before they had come up
        self._closing = False
        self._over = asyncio.Event()  # set by a close, for those that pause

    async def start(self) -> None:
        """Start the processes; they come up while this returns."""
        for _ in range(self._slots):
            try:
                await self._add_worker()
            except OSError as error:
                if not (self._workers and is_shortage(error)):
                    raise
                warn(error)
                self.do(self._replace())

    def submit(self, batch: TaskBatch, environments: Mapping[str, Mapping[str, str]]) -> None:
        """Run a batch on the next process that is idle; `environments` are variables of its tasks, by uid."""
        payload = batch.encode(environments)
        if self._idle:
            self._idle.popleft().run(batch, payload)
        else:
            self._waiting.append((batch, payload))

    async def cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Stop functions: by a message to the worker before they start, by ending the worker while they run."""
        wanted = {task.uid for task in tasks}
        # One that is in no batch has ended, and its outcome is in the channel.
        results = dict.fromkeys(wanted, CancelResult.TOO_LATE) | self._withdraw(wanted)
        stops: list[tuple[Member, ComputeTask]] = []
        for member in self._leaving | self._workers:
            for task in member.batch.shipped if member.batch is not None else ():
                if task.uid not in wanted:
                    continue
                if member in self._leaving:
                    member.unwanted.add(task.uid)
                elif task is not member.current:
                    member.skip(task)
                else:
                    stops.append((member, task))
                results[task.uid] = CancelResult.NEVER_STARTED
        stopped = await asyncio.gather(*(member.stop(task) for member, task in stops))
        results |= {task.uid: result for (_, task), result in zip(stops, stopped, strict=True)}
        return results

    async def withdraw(self, tasks: Sequence[ComputeTask]) -> None:
        """Give back what has not begun of the batches that these tasks are in."""
        wanted = {task.uid for task in tasks}
        members = [
            member
            for member in self._workers
            if member.batch is not None and not wanted.isdisjoint(task.uid for task in member.batch.shipped)
        ]
        await asyncio.gather(*(member.give_back() for member in members))

    async def close(self) -> None:
        """End the processes, and with each whatever its tasks left running."""
        self._closing = True
        self._waiting.clear()
        if asyncio.get_running_loop() is not self.context.loop:  # that one is gone, and reports nothing any more
            for member in self._workers | self._leaving:
                member.kill()
                member.process.wait()
                member.close()
                self._guard.unwatch(member.process.pid)
            return
        self._over.set()
        for member in list(self._workers):
            if member.is_busy or not member.ready:
                member.kill()
            member.close()
        while self._workers or self._chores:  # noqa: ASYNC110  # at the end, a few milliseconds in all
            await asyncio.sleep(0.002)

    # -- what the members call ---------------------------------------------------------------------------------------

    def is_idle(self, member: Member) -> None:
        """Give a worker its next batch, or let it leave once it has run as many tasks as it may."""
        if member.left == 0:
            self.do(self._replace())
            member.leave()
        elif self._waiting:
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
        path = json.dumps(search_path())
        ours, theirs = socket.socketpair()
        memory = new_page()
        page = FramePage(memory)
        try:
            with theirs:
                process = subprocess.Popen(  # noqa: ASYNC220  # two milliseconds, and it needs no child watcher
                    [sys.executable, *_flags(), "-c", _BOOT, str(theirs.fileno()), path, str(memory)],
                    stdin=subprocess.DEVNULL,
                    env=self._environment(),
                    pass_fds=[theirs.fileno(), memory],
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(memory)
        member = Member(self, process, page, self._options.max_tasks_per_child)
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
        if (startup := self._options.startup()) is not None:
            member.send(START, startup)
        if self._closing:  # meanwhile
            member.kill()
            member.close()
        else:
            self.is_idle(member)

    def _environment(self) -> dict[bytes, bytes]:
        """Return the environment of a worker: numerical libraries use its share of the cores, unless one is set."""
        environment = self._guard.environment()
        share = b"%d" % max(1, machine.cores() // self._slots)
        for name in _THREADS:
            environment.setdefault(name, share)
        self._options.apply_to(environment)
        return environment

    async def _bury(self, member: Member) -> None:
        process = member.process
        patience = time.monotonic() + (0.0 if member.is_busy else _LEAVES)
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
        if self._closing or member.is_leaving:
            return
        self.context.events.put(member.events_of_loss())
        if not member.unwanted:
            self.context.log.warning("worker_lost", backend=self.context.backend, exit_code=process.returncode)
        self._failed_starts = 0 if member.ready else self._failed_starts + 1
        if self._failed_starts > self._slots + _FAILED_STARTS:
            self._give_up(f"its worker processes end before they have come up (exit code {process.returncode})")
        else:
            await self._replace()

    async def _replace(self) -> None:
        patience = (
            min(1.0, 0.01 * 2**self._failed_starts) if self._failed_starts else 0.0
        )  # whatever ends them may pass
        for attempt in itertools.count():
            pause = _PAUSES[min(attempt, len(_PAUSES) - 1)]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), patience + pause)
            if self._closing:
                return
            try:
                await self._add_worker()
                return
            except OSError as error:
                if attempt + 1 < len(_PAUSES):
                    continue
                if not self._workers:
                    self._give_up(f"no worker process can be started: {error}")
                    return
                if not is_shortage(error):
                    return
                warn(error)  # the others work on until it can be started

    def _give_up(self, why: str) -> None:
        self._closing = True
        self._waiting.clear()
        self.context.events.put([BackendLost(BackendLostError(f"backend {self.context.backend!r} is lost: {why}"))])

    def _withdraw(self, wanted: set[str]) -> dict[str, CancelResult]:
        """Cancel tasks of batches that wait for a process; the others of these batches go back to the backlog."""
        canceled: list[str] = []
        events: list[Event] = []
        kept: deque[tuple[TaskBatch, bytes]] = deque()
        for batch, payload in self._waiting:
            uids = [task.uid for task in batch.shipped]
            if wanted.isdisjoint(uids):
                kept.append((batch, payload))
                continue
            canceled += (uid for uid in uids if uid in wanted)
            events.append(Returned([uid for uid in uids if uid not in wanted]))
        self._waiting = kept
        events += [Outcome(uid, TaskState.CANCELED) for uid in canceled]
        if events:
            self.context.events.put(events)
        return dict.fromkeys(canceled, CancelResult.NEVER_STARTED)


def _flags() -> list[str]:
    """Return the options with which this interpreter was started."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing does
    options = [name if value is True else f"{name}={value}" for name, value in sys._xoptions.items()]
    for option in options:  # those that are not Python's own too
        if option not in flags:
            flags += ["-X", option]
    return flags
