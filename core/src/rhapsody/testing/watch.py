"""What a backend leaves behind, prints, or blocks: seen from outside."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Final

import attrs

MARK: Final = "RHAPSODY_CONFORMANCE"  # in the environment of every process that descends from this one
_TICK: Final = 0.05  # seconds
_STUCK: Final = 16  # looks in a row at which the loop has not turned
_HELPERS: Final = (
    "multiprocessing.resource_tracker",
    "multiprocessing.forkserver",
    "multiprocessing.semaphore_tracker",
)


def processes() -> dict[int, str]:
    """Return the processes that descend from this one, by pid: children, and whatever carries the mark."""
    import psutil

    mark = os.environ.get(MARK)
    me = psutil.Process()
    found: dict[int, str] = {}
    children = {child.pid for child in me.children(recursive=True)}
    for process in psutil.process_iter():
        try:
            if process.pid == me.pid or process.status() == psutil.STATUS_ZOMBIE:
                continue
            marked = process.pid in children or (mark is not None and process.environ().get(MARK) == mark)
            command = " ".join(process.cmdline()) if marked else ""
        except psutil.Error:  # it ended just now, or is another user's
            continue
        if marked and not any(helper in command for helper in _HELPERS):  # the standard library's live as long as we do
            found[process.pid] = command or "(no command line)"
    return found


def threads() -> dict[int, str]:
    """Return the threads of this process, by number; without those of the loop's own executor, which end with it."""
    return {
        thread.ident: thread.name
        for thread in threading.enumerate()
        if thread.ident is not None and not thread.name.startswith("asyncio_")
    }


def descriptors() -> dict[int, str]:
    """Return the open file descriptors of this process, and what they are."""
    found: dict[int, str] = {}
    for folder in (Path("/proc/self/fd"), Path("/dev/fd")):
        if not folder.exists():
            continue
        for entry in list(folder.iterdir()):
            with contextlib.suppress(OSError):  # the descriptor of this very listing
                os.fstat(int(entry.name))
                found[int(entry.name)] = str(entry.readlink()) if entry.is_symlink() else entry.name
        break
    return found


@attrs.frozen
class Leftovers:
    """What is there now and was not there before."""

    processes: dict[int, str]
    threads: dict[int, str]
    descriptors: dict[int, str]

    @classmethod
    def now(cls) -> Leftovers:
        """Return all that there is."""
        return cls(processes(), threads(), descriptors())

    async def left(self, patience: float) -> Leftovers:
        """Return what came since this was seen and stays, however long one waits: `patience` seconds at most."""
        end = time.monotonic() + patience
        while True:
            now = await asyncio.to_thread(Leftovers.now)
            new = Leftovers(
                {pid: text for pid, text in now.processes.items() if pid not in self.processes},
                {number: name for number, name in now.threads.items() if number not in self.threads},
                {fd: text for fd, text in now.descriptors.items() if self.descriptors.get(fd) != text},
            )
            if not (new.processes or new.threads or new.descriptors) or time.monotonic() > end:
                return new
            await asyncio.sleep(_TICK)


class LoopWatch:
    """Sees from a thread of its own when something keeps the loop from turning, and where.

    A loaded machine delays the loop through no fault of anybody's. So what counts is a loop that did not turn for
    0.8 seconds and either stood at one and the same instruction all the time, or itself computed that long. The start
    of a process does not count: it ends when the new process has had its first turn.

    Attributes:
        blocks: the stack of each such moment, from the place where the loop called.
    """

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._owner = threading.get_ident()
        self._turned = True  # whether the loop has answered the last call
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="rhapsody conformance watch", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def over(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Watch while the loop runs."""
        self._turned = True
        self._loop = loop
        try:
            yield
        finally:
            self._loop = None

    def close(self) -> None:
        """End the watch."""
        self._ended.set()
        self._thread.join()

    def _answer(self) -> None:
        self._turned = True

    def _look(self) -> None:
        frame: FrameType | None = None
        place, moved, looks, began = 0, False, 0, 0.0
        while not self._ended.wait(_TICK):
            loop = self._loop
            if loop is None or self._turned:
                frame, moved, looks = None, False, 0
                if loop is not None:
                    self._turned = False
                    began = self._computed()
                    with contextlib.suppress(RuntimeError):  # it was closed just now
                        loop.call_soon_threadsafe(self._answer)
                continue
            now = sys._current_frames().get(self._owner)
            if now is None:
                continue
            if frame is not None and (now is not frame or now.f_lasti != place):
                moved = True
            frame, place, looks = now, now.f_lasti, looks + 1
            if (
                looks >= _STUCK
                and now.f_code.co_name != "_execute_child"
                and (not moved or self._computed() - began > _STUCK * _TICK)
            ):
                stack = [line for line in traceback.format_stack(now) if _is_theirs(line)]
                self.blocks.append("".join(stack[-4:]))
                self._turned = True  # told once

    def _computed(self) -> float:
        """Return the seconds for which the loop's thread has computed; 0 where the system does not tell."""
        if not hasattr(time, "pthread_getcpuclockid"):
            return 0.0
        return time.clock_gettime(time.pthread_getcpuclockid(self._owner))


def _is_theirs(line: str) -> bool:
    return not any(part in line for part in (f"{os.sep}asyncio{os.sep}", f"{os.sep}_pytest{os.sep}", f"{os.sep}pluggy"))


@attrs.define
class Quiet:
    """What was written to standard output and error while this was held, also by processes started meanwhile."""

    text: str = ""

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        """Keep what is written."""
        python = io.StringIO()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        with tempfile.TemporaryFile() as file:
            kept = [(fd, os.dup(fd)) for fd in (1, 2)]
            try:
                for fd, _ in kept:
                    os.dup2(file.fileno(), fd)
                with contextlib.redirect_stdout(python), contextlib.redirect_stderr(python):
                    yield
            finally:
                for fd, original in kept:
                    os.dup2(original, fd)
                    os.close(original)
                file.seek(0)
                self.text += python.getvalue() + file.read().decode(errors="replace")


@contextlib.contextmanager
def empty_folders() -> Iterator[Callable[[], list[str]]]:
    """Make the current and the temporary folder new and empty ones; gives what lists the files in them.

    The paths are short: names of sockets are made of them.
    """
    home = tempfile.mkdtemp(prefix="rh-")
    folders = [Path(home, "cwd"), Path(home, "tmp")]
    for folder in folders:
        folder.mkdir()
    old_cwd, old_dir, old_environ = Path.cwd(), tempfile.tempdir, os.environ.get("TMPDIR")
    os.chdir(folders[0])
    os.environ["TMPDIR"] = tempfile.tempdir = str(folders[1])

    def files() -> list[str]:
        return sorted(
            f"{folder.name}/{path.relative_to(folder)}"
            for folder in folders
            for path in folder.rglob("*")
            if not path.relative_to(folder).parts[0].startswith("pymp-")  # multiprocessing's, removed at exit
        )

    try:
        yield files
    finally:
        os.chdir(old_cwd)
        tempfile.tempdir = old_dir
        if old_environ is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = old_environ
        if not files():
            import shutil

            shutil.rmtree(home, ignore_errors=True)  # pymp-*, in use until the interpreter ends
