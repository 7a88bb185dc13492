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

import attrs

from ..backends.base import ExecutionBackend
from ..capabilities import BackendCapabilities
from ..context import BackendContext
from ..events import CancelResult
from ..session import Session
from ..states import TaskState
from ..task import ComputeTask
from . import tasks as functions
from .ledger import ConformanceError, Ledger, Spy
from .watch import MARK, Leftovers, LoopWatch

T = TypeVar("T")

_POLL: Final = 0.01  # seconds
_folders = itertools.count(1)


@attrs.define(eq=False)
class Life:
    """One session with one backend, from its start to its end.

    Attributes:
        session: the session.
        backend: the backend that it drives.
        spy: sees what passes through the hooks.
        before: what there was before it started.
        start_error: why it did not start.
        close_error: why it did not close cleanly.
        close_seconds: how long `close` took.
    """

    session: Session
    backend: ExecutionBackend
    spy: Spy
    before: Leftovers | None = None
    start_error: BaseException | None = None
    close_error: BaseException | None = None
    close_seconds: float = 0.0
    is_open: bool = False

    @property
    def context(self) -> BackendContext:
        """What core gave to `rhapsody_init`."""
        assert self.spy.context is not None, "the session was started"
        return self.spy.context

    @property
    def ledger(self) -> Ledger:
        """What the backend was handed, and what it reported."""
        return self.spy.ledger

    @property
    def slots(self) -> int:
        """How many tasks run at once, by what the backend said."""
        return self.context.capacity.slots


class Rig:
    """What every test of the suite is given.

    Args:
        new_backend: makes a backend that nothing has used yet.
        folder: for files, seen by the backend's workers.
        patience: seconds to wait for anything that a sound backend does at once.

    Attributes:
        lives: every session so far.
        watch: of the loop.
        loop_errors: what the loop's exception handler was told.
    """

    def __init__(self, new_backend: Callable[[], ExecutionBackend], folder: Path, patience: float) -> None:
        self.folder = folder
        self.patience = patience
        self.evidence: object = None  # what the lifecycle tests found out
        self.watch = LoopWatch()
        self.loop_errors: list[str] = []
        self.lives: list[Life] = []
        self._new_backend = new_backend
        self._runner = asyncio.Runner()
        self._sample = self.new_backend()
        self._shared: Life | None = None
        self._start_error: BaseException | None = None
        self._runner.get_loop().set_exception_handler(self._loop_error)

    def _loop_error(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.loop_errors.append(f"{context['message']}: {context.get('exception')!r}")

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
        try:
            await life.session.start()
            life.is_open = True
        except Exception as error:
            life.start_error = error
        return life

    def make(self, backend: ExecutionBackend | None = None) -> Life:
        """Make a session that is not started."""
        backend = backend or self.new_backend()
        life = Life(Session(backends=[backend], work_dir=self.folder), backend, Spy())
        # The one place that reaches into core: the spy is a plugin beside the backend, in the backend's own manager.
        life.session._runners[backend.name]._hooks._manager.register(life.spy)
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
            self._shared = life
        return self._shared

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
            ConformanceError: the answer takes longer than the rig's patience and the backend's deadline.
        """
        limit = self.patience + life.backend.deadlines.cancel
        try:
            async with asyncio.timeout(limit):
                return await life.session.cancel_tasks(tasks)
        except TimeoutError:
            raise ConformanceError(f"cancel gave no answer within {limit:g} seconds") from None

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

    async def after_test(self, failed: bool) -> None:
        """Leave nothing to the next test: what still runs is canceled, and after a failure the session is replaced."""
        if failed:
            await self.end_shared()
        elif self._shared is not None:
            held = self._shared.ledger.held
            await self.until(lambda: not held, lambda: f"tasks of this test are still in the backend's hands: {held}")

    def faults(self) -> str:
        """Return what was wrong in the reports of all lives since the last call, as text."""
        return "\n".join(text for life in self.lives if (text := life.ledger.faults()))


@contextlib.contextmanager
def marked_rig(new_backend: Callable[[], ExecutionBackend], folder: Path, patience: float) -> Iterator[Rig]:
    """Give a rig; every process that is started meanwhile inherits a mark by which it is found."""
    held = os.environ.get(MARK)
    os.environ[MARK] = uuid.uuid4().hex
    rig = Rig(new_backend, folder, patience)
    try:
        yield rig
    finally:
        try:
            rig.close()
        finally:
            if held is None:
                os.environ.pop(MARK, None)
            else:
                os.environ[MARK] = held


class Gate:
    """Tasks that wait at it run until it is opened.

    Args:
        folder: seen by the workers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self) -> None:
        """Let every task end."""
        (self.folder / "open").touch()

    def function(self, name: str) -> ComputeTask:
        """Return a function task that waits."""
        return ComputeTask(function=functions.wait_at, args=(str(self.folder), name))

    def executable(self, name: str, before: str = "") -> ComputeTask:
        """Return an executable that waits; it writes its process id to `name.began`."""
        script = (
            f'{before} echo $$ > "$1/$2.tmp"; mv "$1/$2.tmp" "$1/$2.began"; '
            f'while [ ! -e "$1/open" ]; do sleep 0.05; done'
        )
        return ComputeTask(executable="/bin/sh", arguments=["-c", script, "sh", str(self.folder), name])

    def task(self, name: str, can: BackendCapabilities) -> ComputeTask:
        """Return whatever task the backend can run, waiting."""
        return self.function(name) if can.functions else self.executable(name)

    def began(self) -> set[str]:
        """Return the names of the tasks that a worker has begun."""
        return {path.stem for path in self.folder.glob("*.began")}

    def pid(self, name: str) -> int:
        """Return the process of a task that began."""
        return int((self.folder / f"{name}.began").read_text())


def check(true: object, otherwise: str) -> None:
    """Raise ConformanceError with a sentence that an author can mend the backend by."""
    __tracebackhide__ = True
    if not true:
        raise ConformanceError(otherwise)


def state_of(task: ComputeTask) -> str:
    """Describe how a task ended, for a message."""
    if task.exception is None:
        return str(task.state)
    return f"{task.state} with {type(task.exception).__name__}: {task.exception}"


def must_be(task: ComputeTask, state: TaskState, about: str) -> None:
    """Raise ConformanceError unless the task is in this state."""
    __tracebackhide__ = True
    check(task.state is state, f"{about} must end {state}; it ended {state_of(task)}")


async def call_shutdown(backend: ExecutionBackend, seconds: float) -> None:
    """Call a backend's shutdown hook once more, as core does."""
    from ..batching import AdaptiveBatching
    from ..hooks import BackendCaller

    result = BackendCaller(backend, AdaptiveBatching(backend.batching)).shutdown(wait=False)
    if inspect.isawaitable(result):
        async with asyncio.timeout(seconds):
            await result
