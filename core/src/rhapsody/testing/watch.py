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
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    import psutil

MARK: Final = "RHAPSODY_CONFORMANCE"  # in the environment of every process that descends from this one
_TICK: Final = 0.05  # seconds
_LIBRARY: Final = str(Path(os.__file__).parent)
_STUCK: Final = 16  # samples in a row at which the loop has not turned
_SHORT: Final = 6  # likewise, for a block that comes again
_AGAIN: Final = 3  # times that the loop must have stood at one line for that long
_HELPERS: Final = (
    "multiprocessing.resource_tracker",
    "multiprocessing.forkserver",
    "multiprocessing.semaphore_tracker",
)


def processes() -> dict[int, str]:
    """Return the processes that descend from this one, by pid: children, and whatever carries the mark."""
    import psutil

    found = {**commands(psutil.Process().children(recursive=True)), **marked(os.environ.get(MARK, ""))}
    found.pop(os.getpid(), None)
    return found


def started_since(before: Collection[int]) -> dict[int, str]:
    """Return the processes that came after those of `before`, but for what these start: engines that go on."""
    import psutil

    found = {}
    for pid, command in processes().items():
        with contextlib.suppress(psutil.Error, OSError):  # it ended just now
            if pid not in before and not any(parent.pid in before for parent in psutil.Process(pid).parents()):
                found[pid] = command
    return found


def marked(mark: str) -> dict[int, str]:
    """Return the processes that carry a mark, by pid."""
    import psutil

    def has_mark(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error, OSError):  # it ended just now, or is another user's
            return bool(process.environ().get(MARK) == mark)
        return False

    return commands(process for process in psutil.process_iter() if has_mark(process))


def commands(processes: Iterable[psutil.Process]) -> dict[int, str]:
    """Return the command lines of those processes that run, by pid.

    Left out are helpers of the standard library's, which end with the last that holds their pipe.
    """
    import psutil

    found: dict[int, str] = {}
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):  # it ended just now
            command = " ".join(process.cmdline())
            is_helper = any(helper in command for helper in _HELPERS)
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE and not is_helper:
                found[process.pid] = command or "(no command line)"
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


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
            new = await asyncio.to_thread(self._since)
            if not (new.processes or new.threads or new.descriptors) or time.monotonic() > end:
                return new
            await asyncio.sleep(_TICK)

    def _since(self) -> Leftovers:
        return Leftovers(
            started_since(self.processes),
            {number: name for number, name in threads().items() if number not in self.threads},
            {fd: text for fd, text in descriptors().items() if self.descriptors.get(fd) != text},
        )


class LoopWatch:
    """Finds from a thread of its own when something keeps the loop from turning, and where.

    A loaded machine delays the loop through no fault of anybody's. So only samples count at which the loop's thread
    sleeps, or has computed since the last: one that waits for a processor is not blocked. A block is a loop that did
    not turn for 0.8 seconds of such samples; or that did not for 0.3 seconds, three times at the same line. The start
    of a process does not count, nor does a loop that stands in its own selector: no hook keeps it there.

    Attributes:
        blocks: the stack of each block, from the place where the loop called.
    """

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._owner = threading.get_ident()
        self._native = threading.get_native_id()
        self._turned = True  # whether the loop has answered the last call
        self._short: dict[tuple[str, int], int] = {}  # by line: how often the loop stood there for a short time
        self._stack = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="rhapsody conformance watch", daemon=True)
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

    def _sample(self) -> None:
        count, computed, line = 0, 0.0, ("", 0)
        while not self._ended.wait(_TICK):
            loop = self._loop
            if loop is None or self._turned:
                if count >= _SHORT:
                    self._note_short(line)
                count, computed = 0, self._computed()
                if loop is not None:
                    self._turned = False
                    with contextlib.suppress(RuntimeError):  # it was closed just now
                        loop.call_soon_threadsafe(self._answer)
                continue
            now = sys._current_frames().get(self._owner)
            before, computed = computed, self._computed()
            if now is None or now.f_code.co_name == "_execute_child" or now.f_globals.get("__name__") == "selectors":
                continue
            if computed - before > _TICK / 2 or self._is_asleep():
                count += 1
                called = _first_of_theirs(now)
                line = (called.f_code.co_filename, called.f_lineno)
            stack = [text for text in traceback.format_stack(now) if _is_theirs(text)]
            self._stack = "".join(stack[-4:])
            if count >= _STUCK:
                self.blocks.append(self._stack)
                self._turned, count = True, 0  # once for each block

    def _note_short(self, line: tuple[str, int]) -> None:
        self._short[line] = self._short.get(line, 0) + 1
        if self._short[line] == _AGAIN:
            self.blocks.append(self._stack)

    def _computed(self) -> float:
        """Return the seconds for which the loop's thread has computed; 0 where the system does not report it."""
        if not hasattr(time, "pthread_getcpuclockid"):
            return 0.0
        return time.clock_gettime(time.pthread_getcpuclockid(self._owner))

    def _is_asleep(self) -> bool:
        """Return whether the loop's thread sleeps, rather than waits for a processor or a disk."""
        try:
            stat = Path(f"/proc/self/task/{self._native}/stat").read_text()
        except OSError:  # there is no such file system: what does not compute is taken for asleep
            return True
        return stat.rpartition(")")[2].split()[0] == "S"


def _is_of_library(file: str) -> bool:
    return file.startswith((_LIBRARY, "<")) and "site-packages" not in file


def _first_of_theirs(frame: FrameType) -> FrameType:
    """Return the innermost frame that is neither of the standard library nor of the suite: the line to mend."""
    found: FrameType | None = frame
    while found is not None and _is_of_library(found.f_code.co_filename):
        found = found.f_back
    return found or frame


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
