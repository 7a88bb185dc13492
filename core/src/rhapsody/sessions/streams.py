"""`Session.map` and `Session.as_completed`: endless streams of tasks in bounded memory."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rhapsody.errors import InvalidTaskError, SessionError, describe
from rhapsody.model.identity import size_of, weight_of
from rhapsody.model.outcome import CancelResult
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.sessions.given import described, several
from rhapsody.sessions.recorder import Recorder
from rhapsody.sessions.sources import source_of
from rhapsody.sessions.submission import CHUNK, IN_FLIGHT
from rhapsody.worker.seeding import Seeded

IN_FLIGHT_BYTES: Final = 2**28  # of arguments and results
_SMALL: Final = 1024  # bytes of a result that count for nothing: the number of tasks bounds these
_PLAIN: Final = frozenset({type(None), bool, int, float, complex})
_FIRST: Final = 100  # tasks in flight until one has ended: before that, nothing is known of the size of results


class _Window:
    """The tasks of one stream that are in flight: submitted, or ended and not yielded."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self.awaited: dict[str, ComputeTask] = {}
        self.ended: deque[ComputeTask] = deque()  # in the order of their ends
        self.arrived = asyncio.Event()
        self._waiting = 0  # tasks that have ended and were not yielded
        self._most = most
        self._most_bytes = most_bytes
        self._yielded = 0
        self._results = 0  # bytes of all results
        self._counted = 0  # results
        self._sizes: dict[str, int] = {}  # by uid; of those that have any
        self._size = 0

    def __len__(self) -> int:
        return len(self.awaited) + self._waiting

    @property
    def room(self) -> int:
        """How many more tasks may be in flight; 0 while it is less than a chunk."""
        most = self._most if self._counted or self._yielded else min(self._most, _FIRST)
        room = most - len(self)
        return room if room >= min(CHUNK, most // 4) else 0

    @property
    def size(self) -> int:
        """How many more bytes may be in flight, with the results that are to come."""
        expected = self._results // self._counted * len(self.awaited) if self._counted else 0
        left = self._most_bytes - self._size - expected
        return left if len(self) else max(left, 1)  # one task is always let in

    def add(self, task: ComputeTask, size: int) -> None:
        self.awaited[task.uid] = task
        if size:
            self._sizes[task.uid] = size
            self._size += size

    def end(self, task: ComputeTask) -> None:
        """Have a task in flight that has ended."""
        self._waiting += 1
        self.ended.append(task)

    def notify(self, ended: Sequence[str]) -> None:
        take = self.awaited.pop
        for uid in ended:
            task = take(uid, None)
            if task is not None:
                self.end(task)
                self._counted += 1
                size = weight_of(task.return_value)
                if size > _SMALL:
                    self._results += size
                    self._sizes[uid] = self._sizes.get(uid, 0) + size
                    self._size += size
        if self._waiting:
            self.arrived.set()

    def leave(self, task: ComputeTask) -> None:
        """Have a task in flight no more: it is yielded."""
        self._yielded += 1
        self._waiting -= 1
        self._size -= self._sizes.pop(task.uid, 0)


def _size_of(item: Sequence[Any]) -> int:
    """Return the bytes of what a source yields: arguments, a task, or the mapping of one."""
    if _PLAIN.issuperset(map(type, item)):
        return 0
    value = item[0]
    if isinstance(value, ComputeTask):
        return size_of(value)
    if isinstance(value, Mapping):
        return sum(map(weight_of, value.values()))
    return sum(map(weight_of, item))


class Streams:
    """The methods of a session for streams of tasks."""

    uid: str
    _recorder: Recorder

    if TYPE_CHECKING:

        async def submit_tasks(self, tasks: Iterable[ComputeTask | Mapping[str, Any]]) -> Sequence[Any]:
            """Accept tasks."""

        async def cancel_tasks(self, tasks: Iterable[ComputeTask]) -> dict[str, CancelResult]:
            """Stop tasks."""

    def map(
        self,
        function: Callable[..., Any],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        backend: str | None = None,
        in_flight: int = IN_FLIGHT,
        in_flight_bytes: int = IN_FLIGHT_BYTES,
        seed: int | Sequence[int] | None = None,
    ) -> AsyncGenerator[Any, None]:
        """Call a function with the items of iterables, as `map` does, and yield what the calls return, in order.

        Items are taken as there is room, so the iterables may be endless, and memory stays bounded. They may be
        asynchronous, and they may block: what is no container is advanced in a thread, and each item is submitted as
        it comes. A call that fails raises its exception in its turn; so does an iterable, after the results of what
        came before. Leaving the iteration early cancels the calls that are left.

        Args:
            function: what to call.
            iterables: its arguments; the shortest ends the iteration.
            backend: where; None for the session's first.
            in_flight: calls that are submitted, or have ended and wait for their turn.
            in_flight_bytes: bytes of their arguments and results; one call may always be in flight.
            seed: of the random numbers: each call draws from a stream of its own, the same whatever backend, batches
                and number of workers it runs with; see `rhapsody.api.seeded`. None: the workers' own numbers.

        Raises:
            SessionError: in_flight or in_flight_bytes is no positive whole number.
            InvalidTaskError: a seed or a function that cannot be used, or what is no iterable.
        """
        for each in iterables:
            if not isinstance(each, Iterable | AsyncIterable) and not hasattr(each, "__getitem__"):
                raise InvalidTaskError(f"map takes iterables of arguments, not {describe(each)}")
        if seed is not None and iterables:
            function, iterables = Seeded(function, seed), (itertools.count(), *iterables)

        def made(args: Any) -> ComputeTask:
            return ComputeTask(function=function, args=args, backend=backend)

        return self._stream(iterables, made, in_flight, in_flight_bytes, in_order=True)

    def as_completed(
        self,
        tasks: Iterable[ComputeTask | Mapping[str, Any]] | AsyncIterable[ComputeTask | Mapping[str, Any]],
        *,
        in_flight: int = IN_FLIGHT,
        in_flight_bytes: int = IN_FLIGHT_BYTES,
    ) -> AsyncGenerator[ComputeTask, None]:
        """Yield tasks as they end, however they end; ask `task.state`, or `task.result()`, which raises.

        Tasks that were not submitted are submitted as there is room, so an endless generator of new tasks runs in
        bounded memory; it may be asynchronous, and it may block, as with `map`. What it raises is raised after the
        tasks that came before have been yielded. Leaving the iteration early leaves those that were submitted alone.

        Args:
            tasks: new tasks, mappings of their fields, or tasks of this session.
            in_flight: tasks that have not ended, or have ended and were not yielded.
            in_flight_bytes: bytes of their arguments and results; one task may always be in flight.

        Raises:
            SessionError: in_flight or in_flight_bytes is no positive whole number; a task of another session.
            InvalidTaskError and others: as `submit_tasks` does.
        """
        if not isinstance(tasks, AsyncIterable):
            several(tasks, "as_completed")

        def made(item: Any) -> ComputeTask:
            return described(item[0], "as_completed")

        return self._stream([tasks], made, in_flight, in_flight_bytes, in_order=False)

    async def _stream(
        self,
        iterables: Sequence[Any],
        made: Callable[[Any], ComputeTask],
        most: int,
        most_bytes: int,
        *,
        in_order: bool,
    ) -> AsyncGenerator[Any, None]:
        for name, value in (("in_flight", most), ("in_flight_bytes", most_bytes)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SessionError(f"{name} must be a positive whole number, not {value!r}")
        window = _Window(most, most_bytes)
        turns: deque[ComputeTask] = deque()  # where results are yielded in order
        source = source_of(iterables, _size_of, window.arrived.set)
        error: BaseException | None = None
        self._recorder.ends.add(window)
        try:
            while True:
                window.arrived.clear()
                if error is None:
                    try:
                        tasks = [made(item) for item in source.take(window.room, window.size)]
                        await self._submit(window, tasks)
                        turns.extend(tasks if in_order else ())
                    except Exception as failure:  # what was submitted before is yielded first
                        tasks, error = [], failure
                    if tasks:
                        continue
                if in_order and turns and turns[0].is_final:
                    task = turns.popleft()
                    window.ended.clear()
                    window.leave(task)
                    yield task.result().return_value
                elif window.ended and not in_order:
                    task = window.ended.popleft()
                    window.leave(task)
                    yield task
                elif len(window) or not (source.is_over or error):
                    await window.arrived.wait()
                elif (problem := error or source.error) is not None:
                    raise problem
                else:
                    return
        finally:
            self._recorder.ends.remove(window)
            if left := [task for task in turns if not task.is_final]:
                await self.cancel_tasks(left)
            await source.close()

    async def _submit(self, window: _Window, tasks: Sequence[ComputeTask]) -> None:
        """Have tasks in the window, and submit those that were not."""
        new: list[ComputeTask] = []
        for task in tasks:
            if task.is_final:
                window.end(task)
                continue
            if task.state is TaskState.NEW:
                new.append(task)
            elif self._recorder.tasks.get(task.uid) is not task:
                raise SessionError(f"task {task.uid} is not a task of session {self.uid}")
            window.add(task, size_of(task))
        if new:
            try:
                await self.submit_tasks(new)
            except BaseException:
                for task in new:
                    window.awaited.pop(task.uid, None)
                raise
