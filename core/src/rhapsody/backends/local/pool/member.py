"""The program's end of one worker process of the pool: what it runs, and what has come back of it."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Final, Protocol, cast

from rhapsody import worker
from rhapsody.backends.local.pool.main import BATCH, BEGIN_MARK, HOLD, LENGTH, NOTE, READY_MARK, SKIP
from rhapsody.model.outcome import CancelResult, Outcome, Returned, Started
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.protocol.batch import TaskBatch
from rhapsody.seam.channel import Event
from rhapsody.seam.context import BackendContext
from rhapsody.seam.loss import settle_lost
from rhapsody.worker.children import has_ended, is_halted
from rhapsody.worker.guard_process import death_of, kill_group
from rhapsody.worker.progress import FramePage

_LAST_DATA: Final = 0.2  # seconds that the line of a dead worker has to be read to its end
_SKIPS: Final = 0.02  # seconds that a worker has to say that it left a task out
_FREEZE: Final = 1.0  # seconds
_READ_AFTER: Final = 2.5 * HOLD  # seconds from a note until the page is read for what came without one


class Lane(Protocol):
    """What a member needs of the pool that it belongs to."""

    context: BackendContext

    def is_idle(self, member: Member) -> None:
        """Give a worker its next batch."""

    def has_left(self, member: Member) -> None:
        """See to the process of a worker whose line is closed, to its tasks, and to a successor."""

    def do(self, chore: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine beside; closing the pool waits for it."""


class Member(asyncio.Protocol):
    """One worker process.

    Attributes:
        left: tasks that it may still be given; None for any number.
        is_leaving: whether it leaves since it has run them all, and another takes its place.
    """

    def __init__(self, lane: Lane, process: subprocess.Popen[bytes], page: FramePage, most: int | None) -> None:
        self.process = process
        self.ready = False  # it has come up
        self.left = most
        self.is_leaving = False
        self.batch: TaskBatch | None = None
        self.began = False  # it has the batch: the first task may have started
        self.ended = 0  # tasks of the batch that have ended; the next one is running
        self.unwanted: set[str] = set()  # uids of the batch that were canceled
        self._latest: ComputeTask | None = None  # the last task that was seen to run
        self._reported: ComputeTask | None = None  # the last task whose start was reported
        self._lane = lane
        self._received = bytearray()
        self._page = page
        self._seen = 0  # bytes on the page when it was last read
        self._noted = False  # whether a note has come since
        self._next_read: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._death: int | None = None  # a descriptor that can be read once the process has ended
        self._ran_on = f"{worker.where().rpartition(':')[0]}:{process.pid}"

    @property
    def current(self) -> ComputeTask | None:
        """The task that it runs, as far as is known."""
        if self.batch is None or not self.began or self.ended >= len(self.batch.shipped):
            return None
        return self.batch.shipped[self.ended]

    @property
    def is_busy(self) -> bool:
        """Whether tasks of a batch have not ended; the message of the batch's own end may come later than theirs."""
        return self.batch is not None and self.ended < len(self.batch.shipped)

    def run(self, batch: TaskBatch, payload: bytes) -> None:
        """Run a batch."""
        self.batch, self.began, self.ended, self.unwanted = batch, False, 0, set()
        self._page.clear()
        self._seen = 0
        if self.left is not None:
            keep = min(self.left, len(batch.shipped))
            self.left -= keep
            if keep < len(batch.shipped):
                self._lane.context.events.put(self._keep(batch, keep))
        self.send(BATCH, payload)

    def skip(self, task: ComputeTask) -> None:
        """Leave out a task of the batch that has not started."""
        self.unwanted.add(task.uid)
        self.send(SKIP, f"{self._lane.context.session}\0{task.uid}".encode())

    async def stop(self, task: ComputeTask) -> CancelResult:
        """End the process while it runs this task: this one and no other.

        The task may have ended, and the next one have begun, with the report of it still on the line. So the process
        is halted first, and what it has sent is read; then it is known what it runs.
        """
        batch = self.batch
        self.unwanted.add(task.uid)
        await self._halt()
        if self.batch is batch and self.current is task:
            if self._reported is not task:  # the message to leave it out came too late, and it is not "never started"
                self._lane.context.events.put([self._started(task)])
            self.kill()
            return CancelResult.STOPPED
        self._signal(signal.SIGCONT)
        return CancelResult.TOO_LATE

    async def give_back(self) -> None:
        """Keep all tasks of the batch from beginning but the one that runs, and report those as returned."""
        batch = self.batch
        is_still = await self._halt()
        if is_still and batch is not None and self.batch is batch and self.is_busy:
            keep = self.ended + 1 if self.began else 0
            self._lane.context.events.put(self._keep(batch, keep))
        self._signal(signal.SIGCONT)

    def _keep(self, batch: TaskBatch, count: int) -> list[Event]:
        """Keep all but the first tasks of a batch from beginning. Returns what becomes of those."""
        self._page.limit = count
        others = batch.shipped[count:]
        batch.shipped = batch.shipped[:count]
        events: list[Event] = [Outcome(task.uid, TaskState.CANCELED) for task in others if task.uid in self.unwanted]
        return [*events, Returned([task.uid for task in others if task.uid not in self.unwanted])]

    async def _halt(self) -> bool:
        """Halt the process, and read all that it has sent: after this `current` is what it runs. Let it go on soon.

        Returns: whether it is halted; a process that hangs in the kernel halts later.
        """
        self._signal(signal.SIGSTOP)
        patience = time.monotonic() + _FREEZE
        try:
            while not (is_still := self._is_still()) and time.monotonic() < patience:
                await asyncio.sleep(0.0005)
                self._signal(signal.SIGSTOP)  # again: another halt may have let it go on meanwhile
        except BaseException:  # whoever canceled the task waits no longer: nobody else would let it go on
            self._signal(signal.SIGCONT)
            raise
        self._take(self._page.count)
        return is_still

    def kill(self) -> None:
        """End the process and whatever its tasks have left in its group."""
        if self.process.returncode is None:  # not reaped: the number is its own
            kill_group(self.process.pid, signal.SIGKILL)

    def leave(self) -> None:
        """Have the process leave in good order: it is idle, and its line ends."""
        self.is_leaving = True
        asyncio.get_running_loop().call_soon(self.close)

    def close(self) -> None:
        """Close the line; an idle process leaves by itself."""
        self._forget_death()
        if self._next_read is not None:
            self._next_read.cancel()
        if self._transport is not None:
            try:
                self._transport.abort()
            except RuntimeError:  # its loop is closed, and it with it
                pass

    def events_of_loss(self) -> list[Event]:
        """Return what becomes of the batch, once the process has ended and everything it sent has been read."""
        if self._next_read is not None:
            self._next_read.cancel()
        batch = self.batch
        if batch is None:
            return []
        events: list[Event] = [*self._outcomes(self._page.take(self._page.count))]
        current = self.current
        if current is not None and current is not self._reported and current.uid not in self.unwanted:
            events.append(self._started(current))
        code = self.process.returncode
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        ended = {task.uid for task in batch.shipped[: self.ended]}
        begun = () if current is None else (current.uid,)
        why = f"its worker process {self.process.pid} of backend {self._lane.context.backend!r} {how}"
        return events + settle_lost(batch, ended, begun, self.unwanted, why=why)

    # -- what asyncio calls ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the line, and watch the process."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._death = death_of(self.process.pid)
        if self._death is not None:  # else the line's end shows it, unless a process that it forked holds the line
            asyncio.get_running_loop().add_reader(self._death, self._died)

    def data_received(self, data: bytes) -> None:
        """Read marks, notes and frames."""
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
            if self._next_read is None:
                self._next_read = asyncio.get_running_loop().call_later(_READ_AFTER, self._read_page)
        # Frames come by line when the page is full, so all that is on it comes before them.
        self._take(self._page.count if frames or finished else noted, frames, finished)

    def _read_page(self) -> None:
        """Report what was there at the last read, until there is no more of it and no note has come since."""
        self._next_read = None
        if self.batch is None:
            return
        seen, self._seen = self._seen, self._page.count
        if self._noted or self._seen > seen:
            self._noted = False
            self._next_read = self._lane.context.loop.call_later(_READ_AFTER, self._read_page)
        self._take(seen)

    def _take(self, count: int, frames: bytes = b"", finished: bool = False) -> None:
        """Report what is among the first bytes of the page, and what has come by line; and what runs now."""
        events: list[Event] = [*self._outcomes(self._page.take(count) + frames)]
        current = self.current
        if current is not None and current is not self._latest and not finished:
            self._latest = current
            if current.uid in self.unwanted:  # it is left out, unless the message came a moment too late
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

    def send(self, kind: bytes, body: bytes) -> None:
        """Send a message."""
        assert self._transport is not None
        if self._transport.is_closing():  # it is lost, and what becomes of its batch is about to be reported
            return
        self._transport.write(LENGTH.pack(len(body) + 1) + kind)
        self._transport.write(body)

    def _started(self, task: ComputeTask) -> Started:
        self._reported = task
        return Started(task.uid, time.time(), self._ran_on)

    def _make_sure(self, task: ComputeTask) -> None:
        if self.current is task:
            self._lane.do(self.stop(task))

    def _is_still(self) -> bool:
        """Whether the process is halted or dead, and all that it sent has been read."""
        if not has_ended(self.process) and not is_halted(self.process):
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
