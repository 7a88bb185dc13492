"""How processes are found, how their end becomes known, and how they are ended, on this node and on others.

Dragon's own join is a request to its global services that waits for the answer: while it waits, Dragon keeps Python's
garbage collector off in the whole process, and if the runtime dies it waits for good. So where a process is on this
node its end is awaited through a pidfd, and Dragon is asked only afterwards, for the exit code.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from .startup_checks import start_error

#: Seconds for which one wait lasts, before it checks whether processes have been replaced, or it is wanted no more.
WAIT_SECONDS: Final = 1.0
#: Seconds for a process to be gone that was killed.
KILL_DEADLINE: Final = 5.0
#: Seconds for the services of a runtime to start an executable that says who they are.
SERVICES_DEADLINE: Final = 5.0


Exits = Generator[tuple[Any, int], None, None]


def ended_of(pids: Iterable[int], seconds: float) -> list[int]:
    """Return those of several processes, which need not be children, that have ended; after `seconds` at most."""
    poll = select.poll()  # not `select`, which cannot be asked about a descriptor above 1023
    watched: dict[int, int] = {}
    ended: list[int] = []
    try:
        for pid in pids:
            try:
                watched[fd := os.pidfd_open(pid)] = pid
                poll.register(fd, select.POLLIN)
            except ProcessLookupError:
                ended.append(pid)
        return ended + [watched[fd] for fd, _ in poll.poll(0 if ended else max(0.0, seconds) * 1000)]
    finally:
        for fd in watched:
            os.close(fd)


def wait_for_end(pid: int, seconds: float) -> bool:
    """Wait for the end of a process; False if the time is over before."""
    return bool(ended_of([pid], seconds))


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be collected does not."""
    return not wait_for_end(pid, 0)


def exits_by_pidfd(workers: Sequence[Any], is_over: Callable[[], bool]) -> Exits:
    """Yield the workers of this node whose processes end, with their exit codes.

    Ends when `is_over`, or when the runtime itself dies, which `runtime.py` notices.
    """
    while not is_over():
        known = {worker.pid: worker for worker in workers if worker.process is not None and worker.pid}
        for pid in ended_of(known, WAIT_SECONDS):
            worker = known[pid]
            if is_over() or not is_alive(worker.parent):
                return
            code = worker.process.join(timeout=WAIT_SECONDS)
            if code is None:  # Dragon has not noticed yet; should it mean another process, that must not be left
                worker.process.kill()
            yield worker, -9 if code is None else int(code)
        for worker in [worker for worker in workers if worker.is_late]:
            if not is_over() and (code := worker.process.join(timeout=0)) is not None:
                yield worker, int(code)


def exits_by_dragon(workers: Sequence[Any], is_over: Callable[[], bool]) -> Exits:
    """Yield the workers of any node whose processes end, with their exit codes, for which Dragon is asked."""
    from dragon.globalservices.process import multi_join

    while not is_over():
        living = {worker.process.puid: worker for worker in workers if worker.process is not None}
        if not living:
            time.sleep(WAIT_SECONDS)
            continue
        ended, _ = multi_join(list(living), timeout=WAIT_SECONDS)
        for puid, code in ended or ():
            if is_over():
                return
            yield living[puid], int(code)


def end_process(process: Any, pid: int, patience: float) -> str | None:
    """Give a process of Dragon's `patience` seconds to leave, and kill it then; return what went wrong, if anything.

    Where it is on this node, and so has a `pid`, Dragon is not asked: if the runtime dies meanwhile it never answers.
    """
    try:
        if pid:
            is_gone = wait_for_end(pid, patience)
            if not is_gone:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                is_gone = wait_for_end(pid, KILL_DEADLINE)
        else:
            is_gone = process.join(max(0.0, patience)) is not None
            if not is_gone:
                process.kill()
                is_gone = process.join(KILL_DEADLINE) is not None
    except Exception as error:  # each part of Dragon has a class of its own
        return f"could not be ended: {type(error).__name__}: {error}"
    return None if is_gone else f"was killed and is still there after {KILL_DEADLINE:g} seconds"


def marked(name: str, value: str) -> list[int]:
    """Return the processes of this node that have a variable in their environment."""
    variable, found = f"{name}={value}".encode(), []
    for entry in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208 - names are what is wanted
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if variable in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                found.append(int(entry))
    return found


def root_of(pids: Sequence[int]) -> int | None:
    """Return the one of several processes whose parent is not among them."""
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            stat = Path("/proc", str(pid), "stat").read_text(encoding="utf-8", errors="replace")
            if int(stat.rpartition(")")[2].split()[1]) not in pids:
                return pid
    return None


def services_here() -> int:
    """The pid of Dragon's services on this node: the parent of what they start, which no request of Dragon's answers.

    Raises:
        BackendStartError: they do not start anything.
    """
    from dragon.infrastructure.policy import Policy
    from dragon.native.machine import current
    from dragon.native.process import Process

    with tempfile.TemporaryDirectory(prefix="rhapsody-dragon-") as folder:
        answer = Path(folder, "parent")
        try:
            process = Process(
                target="/bin/sh",
                args=["-c", 'echo $PPID >"$0"', str(answer)],
                cwd=folder,
                stdout=Process.DEVNULL,
                stderr=Process.DEVNULL,
                policy=Policy(placement=Policy.Placement.HOST_NAME, host_name=current().hostname),
            )
            process.start()
            process.join(timeout=SERVICES_DEADLINE)
            return int(answer.read_text())
        except Exception as error:
            raise start_error("services", f"{type(error).__name__}: {error}") from error
