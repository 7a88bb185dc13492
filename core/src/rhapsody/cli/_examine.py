"""What `rhapsody doctor` runs for each backend, in a process of its own: `python -m rhapsody.cli._examine`.

A backend that hangs, exits, or takes the whole process down is then a line in the report. What happens is written to
a file as it happens, one JSON object a line, so that the last line shows where it ended:

    {"stage": "start"}                                      a stage begins
    {"stage": "start", "seconds": 0.01}                     it went well
    {"stage": "start", "waits": "..."}                      it takes long, and what it waits for
    {"stage": "start", "problem": "...", "remedy": "..."}   or it did not, and this is the last line
    {"stage": "end"}                                        all of it was run
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Final

from rhapsody.cli import _waits
from rhapsody.cli._common import build_backend
from rhapsody.errors import BackendStartError, RhapsodyError
from rhapsody.model.task import ComputeTask
from rhapsody.seam.capabilities import BackendCapabilities
from rhapsody.sessions.session import Session

_PATIENCE: Final = 60.0  # seconds for one task on an idle backend
_LONG: Final = 5.0  # seconds after which a stage is said to wait; and again after each as many
_ANSWER: Final = 1.0  # seconds in which a loop that turns answers
_WORD: Final = "rhapsody"


class Problem(Exception):
    """Something is wrong.

    Attributes:
        remedy: what to do.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


def probe(number: int) -> tuple[int, str]:
    """Return twice the number, and the version of Python that runs this."""
    return 2 * number, platform.python_version()


class Examination:
    """One backend's.

    Args:
        name: the backend.
        report: the file to write to.
        work_dir: the folder of the session.
        options: arguments of the backend, each as KEY=VALUE.
    """

    def __init__(self, name: str, report: Path, work_dir: str, options: Sequence[str] = ()) -> None:
        self._name = name
        self._options = options
        self._session: Session | None = None
        self._task: ComputeTask | None = None  # which has not ended
        self._ended = threading.Event()
        self._report = report
        self._work_dir = work_dir
        self._stage = "load"
        self._began = 0.0

    async def run(self) -> None:
        """Load, start, run a function and an executable, shut down."""
        self._enter("load")
        loop, thread = asyncio.get_running_loop(), threading.get_ident()
        threading.Thread(target=self._watch, args=(loop, thread), name="rhapsody waits", daemon=True).start()
        try:
            with _interruptible():
                backend = build_backend(self._name, self._options)
            session = self._session = Session(backends=[backend], work_dir=self._work_dir)
            self._passed()
            await self._use(session, backend.capabilities)
        except Problem as problem:
            self._write(problem=str(problem), remedy=problem.remedy)
        except Exception as error:
            self._write(problem=_sentence(error), remedy=_remedy(error, self._name))
        else:
            self._write(stage="end")
        finally:
            self._ended.set()

    async def _use(self, session: Session, capabilities: BackendCapabilities) -> None:
        self._enter("start")
        await session.start()
        self._passed()
        try:
            if capabilities.functions:
                self._enter("function")
                await self._function(session)
                self._passed()
            if capabilities.executables:
                self._enter("executable")
                await self._executable(session)
                self._passed()
        except BaseException:
            await session.close(wait=False)
            raise
        self._enter("shutdown")
        await session.close()
        self._passed()

    async def _function(self, session: Session) -> None:
        task = ComputeTask(function=probe, args=(21,))
        await self._end_of(session, task)
        doubled, version = task.return_value
        if doubled != 42:
            raise Problem(f"a function returned {doubled}, not 42", "report it to the backend's author")
        if version.split(".")[:2] != platform.python_version().split(".")[:2]:
            raise Problem(
                f"its workers run Python {version}, and this is Python {platform.python_version()}",
                "give both the same environment: functions and results do not travel between versions of Python",
            )

    async def _executable(self, session: Session) -> None:
        task = ComputeTask(executable="echo", arguments=[_WORD])
        await self._end_of(session, task)
        if task.stdout != f"{_WORD}\n" or task.exit_code != 0:
            raise Problem(
                f"`echo {_WORD}` gave {task.stdout!r} and exit code {task.exit_code}",
                "report it to the backend's author",
            )

    async def _end_of(self, session: Session, task: ComputeTask) -> None:
        await session.submit_tasks([task])
        self._task = task
        try:
            await session.wait_tasks([task], timeout=_PATIENCE)
        except TimeoutError:
            raise Problem(
                f"a task is still {task.state} after {_PATIENCE:g} s: {session.explain(task)}",
                "check whether its workers run, and read its log with RHAPSODY_LOG_LEVEL=DEBUG",
            ) from None
        finally:
            self._task = None
        task.result()

    def _watch(self, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        """Report what a stage that takes long waits for; runs in a thread of its own."""
        said = self._began = time.perf_counter()
        while not self._ended.wait(_LONG / 10):
            if time.perf_counter() - max(said, self._began) < _LONG:
                continue
            said = time.perf_counter()
            pending = asyncio.run_coroutine_threadsafe(self._waits(), loop)
            try:
                text = pending.result(_ANSWER)
            except TimeoutError:
                text = _waits.of_thread(thread)
            except CancelledError:  # the loop has ended
                return
            self._write(waits=text or "nothing that can be seen from here")

    async def _waits(self) -> str:
        if self._session is not None and self._task is not None:
            return self._session.explain(self._task)
        return _waits.of_loop()

    def _enter(self, stage: str) -> None:
        self._stage = stage
        self._write()
        self._began = time.perf_counter()

    def _passed(self) -> None:
        self._write(seconds=round(time.perf_counter() - self._began, 6))

    def _write(self, stage: str | None = None, **fields: object) -> None:
        with self._report.open("a") as file:
            file.write(json.dumps({"stage": stage or self._stage, **fields}) + "\n")


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGINT end what blocks the loop. asyncio's handler only cancels a task, which an import never notices."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _sentence(error: BaseException) -> str:
    """Describe an error; its cause too, where the error does not."""
    text = str(error) if isinstance(error, RhapsodyError) else f"{type(error).__name__}: {error}"
    cause = error.__cause__
    if cause is not None and str(cause) not in text:
        text += f" ({type(cause).__name__}: {cause})"
    return text


def _remedy(error: BaseException, name: str) -> str:
    """Say what to do, where the error's own sentence does not."""
    if isinstance(error, RhapsodyError) and not isinstance(error, BackendStartError):
        return ""
    return f"RHAPSODY_LOG_LEVEL=DEBUG rhapsody doctor {name} shows what the backend logs"


def main() -> None:
    """Examine the backend that the arguments name."""
    name, report, work_dir, *options = sys.argv[1:]
    asyncio.run(Examination(name, Path(report), work_dir, options).run())


if __name__ == "__main__":
    main()
