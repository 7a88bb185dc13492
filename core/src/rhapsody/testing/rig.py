"""Drives a backend under test: one loop and one open session for a class of tests, and fresh ones where asked."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import os
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from rhapsody.backends.base import ExecutionBackend
from rhapsody.model.outcome import CancelResult
from rhapsody.model.task import ComputeTask
from rhapsody.seam.capabilities import BackendCapabilities
from rhapsody.sessions.session import Session
from rhapsody.testing.assertions import check
from rhapsody.testing.gate import Gate
from rhapsody.testing.ledger import ConformanceError, Spy
from rhapsody.testing.life import Life
from rhapsody.testing.watch import MARK, Leftovers, LoopWatch

__tracebackhide__ = True  # frames of the suite

T = TypeVar("T")

_POLL: Final = 0.01  # seconds
_RECOVERY: Final = 10.0  # seconds that workers which a test has ended have to be replaced
_OBSERVERS: Final = "RHAPSODY_DISABLE_OBSERVERS"
_folders = itertools.count(1)


class Rig:
    """What every test of the suite is given.

    Args:
        new_backend: makes a backend that nothing has used yet.
        folder: for files, seen by the backend's workers.
        patience: seconds to wait for anything that a sound backend does at once.

    Attributes:
        lives: every session so far.
        watch: of the loop.
        loop_errors: what the loop's exception handler received.
    """

    def __init__(self, new_backend: Callable[[], ExecutionBackend], folder: Path, patience: float) -> None:
        self.folder = folder
        self.patience = patience
        self.evidence: object = None  # what the lifecycle tests found out
        self.lost = ""  # why nothing more is tested; empty as long as the backend is there
        self.watch = LoopWatch()
        self.loop_errors: list[str] = []
        self.lives: list[Life] = []
        self._new_backend = new_backend
        self._runner = asyncio.Runner()
        self._sample = self.new_backend()
        self._shared: Life | None = None
        self._slots = 0  # that its capacity was last seen to have
        self._start_error: BaseException | None = None
        self._runner.get_loop().set_exception_handler(self._loop_error)

    def _loop_error(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.loop_errors.append(f"{context['message']}: {context.get('exception')!r}")

    @property
    def new_backend_function(self) -> Callable[[], ExecutionBackend]:
        """What the author's fixture gave."""
        return self._new_backend

    def new_backend(self) -> ExecutionBackend:
        """Make a backend that nothing has used yet."""
        backend = self._new_backend()
        if not isinstance(backend, ExecutionBackend):
            raise ConformanceError(
                f"the fixture new_backend must return a callable which returns a new backend each time; it gave "
                f"{backend!r}"
            )
        return backend

    @property
    def capabilities(self) -> BackendCapabilities:
        """What the backend declares."""
        return self._sample.capabilities

    @property
    def backend_name(self) -> str:
        """The name under which tasks choose it."""
        return self._sample.name

    # -- running -------------------------------------------------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the rig's loop."""
        with self.watch.over(self._runner.get_loop()):
            return self._runner.run(work)

    def close(self) -> None:
        """End the shared session, the loop and the watch."""
        try:
            self.run(self.end_shared())
            faults = self.faults()
            check(not faults, f"core had to drop reports of the backend:\n{faults}")
        finally:
            self.watch.close()
            self._runner.close()

    # -- sessions ------------------------------------------------------------------------------------------------------

    async def start(self, backend: ExecutionBackend | None = None) -> Life:
        """Start a session of its own; `start_error` says what went wrong."""
        life = self.make(backend)
        life.before = await asyncio.to_thread(Leftovers.now)
        began = time.monotonic()
        try:
            await life.session.start()
            life.is_open = True
            life.start_seconds = time.monotonic() - began
        except Exception as error:
            life.start_error = error
        return life

    def make(self, backend: ExecutionBackend | None = None) -> Life:
        """Make a session that is not started."""
        backend = backend or self.new_backend()
        life = Life(Session(backends=[backend], work_dir=self.folder), backend, Spy())
        # The one place that reaches into core: the spy is a plugin beside the backend, in the backend's own manager.
        life.session._runners[backend.name]._hooks.add(life.spy)
        self.lives.append(life)
        return life

    async def end(self, life: Life, *, wait: bool = True) -> None:
        """Close a session; `close_error` says what went wrong."""
        if not life.is_open:
            return
        life.is_open = False
        began = time.monotonic()
        try:
            await life.session.close(wait=wait)
        except Exception as error:
            life.close_error = error
        life.close_seconds = time.monotonic() - began

    async def shared(self) -> Life:
        """Return the session that most tests share; started when it is first asked for."""
        if self._start_error is not None:
            raise ConformanceError(f"the backend did not start, so nothing of it can be tested: {self._start_error}")
        if self._shared is None:
            life = await self.start()
            if life.start_error is not None:
                self._start_error = life.start_error
                raise ConformanceError(f"the backend did not start: {life.start_error}") from life.start_error
            self._shared, self._slots = life, life.slots
        await self._recover(self._shared)
        return self._shared

    async def _recover(self, life: Life) -> None:
        """Wait until workers that an earlier test has ended are replaced, as far as the backend does that."""
        deadline = time.monotonic() + _RECOVERY
        while life.slots < self._slots and life.loss is None:  # nobody reports it to the suite
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.02)
        self._slots = life.slots

    async def end_shared(self, *, wait: bool = False) -> None:
        """Close the shared session; the next test that needs it gets a new one."""
        life, self._shared = self._shared, None
        if life is not None:
            await self.end(life, wait=wait)

    # -- tasks ---------------------------------------------------------------------------------------------------------

    async def submit(self, tasks: Sequence[ComputeTask], life: Life | None = None) -> Life:
        """Submit tasks to the shared session, or another one."""
        life = life or await self.shared()
        await life.session.submit_tasks(tasks)
        return life

    async def finish(self, tasks: Sequence[ComputeTask], life: Life | None = None) -> Sequence[ComputeTask]:
        """Submit tasks, and wait until they have ended.

        Raises:
            ConformanceError: some have not ended while nothing ended any more for the rig's patience.
        """
        life = await self.submit(tasks, life)
        return await self.ended(tasks, life)

    async def ended(self, tasks: Sequence[ComputeTask], life: Life) -> Sequence[ComputeTask]:
        """Wait until submitted tasks have ended; as long as some do, the others have time."""
        left = len(tasks)
        while True:
            try:
                await life.session.wait_tasks(tasks, timeout=self.patience)
                life.check_backend(tasks)
                return tasks
            except TimeoutError:
                now = sum(not task.is_final for task in tasks)
                if now == left:
                    raise ConformanceError(
                        f"of {len(tasks)} tasks, {life.ledger.missing(tasks)} (waited {self.patience:g} s for the next "
                        f"to end)"
                    ) from None
                left = now

    async def one(self, life: Life | None = None, **fields: Any) -> ComputeTask:
        """Run one task, and return it."""
        return (await self.finish([ComputeTask(**fields)], life))[0]

    async def cancel(self, tasks: Sequence[ComputeTask], life: Life) -> Mapping[str, CancelResult]:
        """Cancel tasks.

        Raises:
            ConformanceError: the answer takes longer than the rig's patience and the backend's deadline; or the backend
                answers what does not follow.
        """
        limit = self.patience + life.backend.deadlines.cancel
        try:
            async with asyncio.timeout(limit):
                results = await life.session.cancel_tasks(tasks)
        except TimeoutError:
            raise ConformanceError(f"cancel gave no answer within {limit:g} seconds") from None
        for task in tasks:
            answer = life.spy.answers.get(task.uid)
            if answer in (CancelResult.STOPPED, CancelResult.NEVER_STARTED) and not task.is_final:
                raise ConformanceError(
                    f"rhapsody_cancel answered {answer} of task {task.uid}, and no Outcome(CANCELED) followed within "
                    f"{life.backend.deadlines.cancel:g} seconds (deadlines.cancel): the task is {task.state}. Report "
                    f"the outcome of what was stopped, and answer CANNOT_STOP of what was not"
                )
        return results

    async def until(self, true: Callable[[], object], otherwise: str | Callable[[], str]) -> None:
        """Wait until something is true.

        Raises:
            ConformanceError: `otherwise`, when the rig's patience is over.
        """
        end = time.monotonic() + self.patience
        while not true():
            if time.monotonic() > end:
                text = otherwise if isinstance(otherwise, str) else otherwise()
                raise ConformanceError(f"{text} (waited {self.patience:g} s)")
            await asyncio.sleep(_POLL)

    @contextlib.contextmanager
    def gate(self) -> Iterator[Gate]:
        """Give a gate at which tasks wait; it opens at the end, whatever happens."""
        gate = Gate(self.new_folder())
        try:
            yield gate
        finally:
            gate.open()

    def new_folder(self) -> Path:
        """Make an empty folder."""
        folder = self.folder / f"files.{next(_folders)}.{uuid.uuid4().hex[:6]}"
        folder.mkdir(parents=True)
        return folder

    async def after_test(self, failed: bool, test: str) -> None:
        """Leave nothing to the next test: what still runs is canceled, and after a failure the session is replaced.

        Once the backend of the shared session was lost, nothing more is tested: one cause, one failure.
        """
        if self._shared is not None and (loss := self._shared.loss) is not None:
            self.lost = f"the backend was lost in {test}, and nothing is tested after that: {loss}"
            await self.end_shared()
            if not failed:
                raise ConformanceError(self.lost)
        elif failed:
            await self.end_shared()
        elif self._shared is not None:
            held = self._shared.ledger.held
            await self.until(lambda: not held, lambda: f"the backend still holds tasks of this test: {held}")

    def faults(self) -> str:
        """Return what was wrong in the reports of all lives since the last call, as text."""
        return "\n".join(text for life in self.lives if (text := life.ledger.faults()))


@contextlib.contextmanager
def marked_rig(new_backend: Callable[[], ExecutionBackend], folder: Path, patience: float) -> Iterator[Rig]:
    """Give a rig; every process that is started meanwhile inherits a mark by which it is found."""
    held = {name: os.environ.get(name) for name in (MARK, _OBSERVERS)}
    os.environ[MARK] = uuid.uuid4().hex
    os.environ[_OBSERVERS] = "*"  # those that others have installed are not tested here
    rig = Rig(new_backend, folder, patience)
    try:
        yield rig
    finally:
        try:
            rig.close()
        finally:
            for name, value in held.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


async def call_shutdown(backend: ExecutionBackend, seconds: float) -> None:
    """Call a backend's shutdown hook once more, as core does."""
    from rhapsody.scheduling.batching import AdaptiveBatching
    from rhapsody.seam.calls import BackendCaller

    result = BackendCaller(backend, AdaptiveBatching(backend.batching)).shutdown(wait=False)
    if inspect.isawaitable(result):
        async with asyncio.timeout(seconds):
            await result
