"""This program's end of one worker process of `_processes.ProcessLane`: what it runs, and what has come back of it."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Final

from .. import worker
from .._executable import has_ended
from .._guard import death_of, kill_group
from ..batch import TaskBatch
from ..errors import WorkerLostError
from ..events import CancelResult, Event, Outcome, Returned, Started
from ..states import TaskState
from ..task import ComputeTask
from ._pool_page import Page
from ._pool_worker import BEGIN_MARK, HOLD, LENGTH, NOTE, READY_MARK, SKIP, UNIT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._processes import ProcessLane

_LAST_DATA: Final = 0.2  # seconds that the line of a dead worker has to be read to its end
_SKIPS: Final = 0.02  # seconds that a worker has to say that it left a task out
_FREEZE: Final = 1.0  # seconds
_LOOK: Final = 2.5 * HOLD  # seconds from a note to a look at what the worker has left on the page without one


class Member(asyncio.Protocol):
    """One worker process."""

    def __init__(self, lane: ProcessLane, process: subprocess.Popen[bytes], page: Page) -> None:
        self.process = process
        self.ready = False  # it has come up
        self.batch: TaskBatch | None = None
        self.began = False  # it has the unit: the first task may have started
        self.ended = 0  # tasks of the unit that have ended; the next one is running
        self.unwanted: set[str] = set()  # uids of the unit that were canceled
        self._latest: ComputeTask | None = None  # the last task that was seen to run
        self._told: ComputeTask | None = None  # the last task whose start was reported
        self._lane = lane
        self._received = bytearray()
        self._page = page
        self._seen = 0  # bytes on the page at the last look
        self._noted = False  # whether a note has come since
        self._look: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._death: int | None = None  # a descriptor that can be read once the process has ended
        self._ran_on = f"{worker.where().rpartition(':')[0]}:{process.pid}"

    @property
    def current(self) -> ComputeTask | None:
        """The task that it runs, as far as is known."""
        if self.batch is None or not self.began or self.ended >= len(self.batch.shipped):
            return None
        return self.batch.shipped[self.ended]

    def run(self, batch: TaskBatch, payload: bytes) -> None:
        """Run a unit."""
        self.batch, self.began, self.ended, self.unwanted = batch, False, 0, set()
        self._page.clear()
        self._seen = 0
        self._send(UNIT, payload)

    def skip(self, task: ComputeTask) -> None:
        """Leave out a task of the unit that has not started."""
        self.unwanted.add(task.uid)
        self._send(SKIP, f"{self._lane.context.session}\0{task.uid}".encode())

    async def stop(self, task: ComputeTask) -> CancelResult:
        """End the process while it runs this task: this one and no other.

        The task may have ended, and the next one have begun, with the word of it still on the line. So the process
        is halted first, and what it has sent is read; then it is known what it runs.
        """
        batch = self.batch
        self.unwanted.add(task.uid)
        self._signal(signal.SIGSTOP)
        patience = time.monotonic() + _FREEZE
        try:
            while not self._is_still() and time.monotonic() < patience:
                await asyncio.sleep(0.0005)
                self._signal(signal.SIGSTOP)  # again: another stop may have let it go on meanwhile
        except BaseException:  # whoever canceled the task waits no longer: nobody else would let it go on
            self._signal(signal.SIGCONT)
            raise
        self._take(self._page.count)
        if self.batch is batch and self.current is task:
            if self._told is not task:  # the word to leave it out came too late, and it is not "never started"
                self._lane.context.events.put([self._started(task)])
            self.kill()
            return CancelResult.STOPPED
        self._signal(signal.SIGCONT)
        return CancelResult.TOO_LATE

    def kill(self) -> None:
        """End the process and whatever its tasks have left in its group."""
        if self.process.returncode is None:  # not reaped: the number is its own
            kill_group(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close the line; an idle process leaves by itself."""
        self._forget_death()
        if self._look is not None:
            self._look.cancel()
        if self._transport is not None:
            try:
                self._transport.abort()
            except RuntimeError:  # its loop is closed, and it with it
                pass

    def events_of_loss(self) -> list[Event]:
        """Tell what becomes of the unit, once the process has ended and everything it sent has been read."""
        if self._look is not None:
            self._look.cancel()
        batch = self.batch
        if batch is None:
            return []
        events: list[Event] = [*self._outcomes(self._page.take(self._page.count))]
        returned: list[str] = []
        for index, task in enumerate(batch.shipped[self.ended :]):
            if task.uid in self.unwanted:
                events.append(Outcome(task.uid, TaskState.CANCELED))
            elif index == 0 and self.began:
                code = self.process.returncode
                how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                backend = self._lane.context.backend
                text = f"task {task.uid}: its worker process {self.process.pid} of backend {backend!r} {how}"
                if self._told is not task:
                    events.append(self._started(task))
                events.append(Outcome(task.uid, TaskState.FAILED, exception=WorkerLostError(text)))
            else:
                returned.append(task.uid)
        if returned:
            events.append(Returned(returned))
        return events

    # -- what asyncio calls ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._death = death_of(self.process.pid)
        if self._death is not None:  # else the end of the line tells, unless a process that it forked holds that
            asyncio.get_running_loop().add_reader(self._death, self._died)

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        start, end, finished, noted = 0, 0, False, 0
        while end + LENGTH.size <= len(received):
            (length,) = LENGTH.unpack_from(received, end)
            if length >= NOTE:  # none of these comes after a frame
                start = end = end + LENGTH.size
                if length < READY_MARK:
                    noted = length - NOTE
                else:
                    self.ready = True
                    self.began = length == BEGIN_MARK
            elif length == 0:
                finished = True
                break
            elif end + LENGTH.size + length > len(received):
                break
            else:
                end += LENGTH.size + length
        frames = bytes(received[start:end])
        del received[: end + LENGTH.size if finished else end]
        if noted:
            self._noted = True
            if self._look is None:
                self._look = asyncio.get_running_loop().call_later(_LOOK, self._look_at_page)
        # Frames come by line when the page is full, so all that is on it comes before them.
        self._take(self._page.count if frames or finished else noted, frames, finished)

    def _look_at_page(self) -> None:
        """Read what was there at the last look, until there is no more of it and no note has come since."""
        self._look = None
        if self.batch is None:
            return
        seen, self._seen = self._seen, self._page.count
        if self._noted or self._seen > seen:
            self._noted = False
            self._look = self._lane.context.loop.call_later(_LOOK, self._look_at_page)
        self._take(seen)

    def _take(self, count: int, frames: bytes = b"", finished: bool = False) -> None:
        """Report what is among the first bytes of the page, and what has come by line; and what runs now."""
        events: list[Event] = [*self._outcomes(self._page.take(count) + frames)]
        current = self.current
        if current is not None and current is not self._latest and not finished:
            self._latest = current
            if current.uid in self.unwanted:  # it is left out, unless the word came a moment too late
                asyncio.get_running_loop().call_later(_SKIPS, self._make_sure, current)
            else:
                events.append(self._started(current))
        if events:
            self._lane.context.events.put(events)
        if finished:
            self.batch = None
            self._lane.is_idle(self)

    def _outcomes(self, frames: bytes) -> Sequence[Event]:
        if not frames:
            return ()
        assert self.batch is not None
        outcomes = self.batch.decode(frames)
        self.ended += len(outcomes)
        return outcomes

    def connection_lost(self, _: Exception | None) -> None:
        """Read what is left: where a write has failed, asyncio gives the line up with what was sent still on it."""
        self._forget_death()
        assert self._transport is not None
        line = self._transport.get_extra_info("socket").fileno()
        while True:
            try:
                data = os.read(line, 2**18)
            except OSError:  # there is nothing more, or the other end left in a hurry
                break
            if not data:
                break
            self.data_received(data)
        self._lane.has_left(self)

    # ----------------------------------------------------------------------------------------------------------------

    def _send(self, kind: bytes, body: bytes) -> None:
        assert self._transport is not None
        if self._transport.is_closing():  # it is lost, and what becomes of its unit is about to be told
            return
        self._transport.write(LENGTH.pack(len(body) + 1) + kind)
        self._transport.write(body)

    def _started(self, task: ComputeTask) -> Started:
        self._told = task
        return Started(task.uid, time.time(), self._ran_on)

    def _make_sure(self, task: ComputeTask) -> None:
        if self.current is task:
            self._lane.do(self.stop(task))

    def _is_still(self) -> bool:
        """Whether the process is halted or dead, and all that it sent has been read."""
        if not has_ended(self.process):
            halted = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, self.process.pid, halted) is None:
                return False
        if self._transport is None or self._transport.is_closing():
            return True
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not poll.poll(0)

    def _signal(self, signum: int) -> None:
        if self.process.returncode is None:
            os.kill(self.process.pid, signum)

    def _died(self) -> None:
        self._forget_death()
        self.kill()  # what it left running may hold the line, of which this waits for the end
        asyncio.get_running_loop().call_later(_LAST_DATA, self.close)

    def _forget_death(self) -> None:
        fd, self._death = self._death, None
        if fd is not None:
            self._lane.context.loop.remove_reader(fd)
            os.close(fd)
