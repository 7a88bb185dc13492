"""Runs one executable to its end, in a process group of its own; standard library only."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ._guard import Guard, death_of, kill_group

KEEP: Final = 8 * 2**20  # bytes kept of the beginning, and as many of the end, of each stream held in memory
GRACE: Final = 3.0  # seconds from SIGTERM to SIGKILL
Key = tuple[str, str]  # session and task: two sessions of one process may use the same uid

_CHUNK: Final = 65536
_LOOK_MS: Final = 20  # between two looks for the end of a program, where no descriptor tells of it
_ERROR_TAIL: Final = 4096


class Command(NamedTuple):
    """What to run: a task's description, ready for the operating system.

    Attributes:
        argv: the program and its arguments; for `shell` the one command line.
        shell: run through `/bin/sh -c`.
        cwd: folder in which it runs; None for the worker's own.
        environment: variables added to the worker's own.
        stdin: bytes that it reads; None for nothing.
        stdout_path: file for its standard output; None to keep it in memory.
        stderr_path: likewise.
    """

    argv: tuple[str, ...]
    shell: bool = False
    cwd: str | None = None
    environment: Mapping[str, str] | None = None
    stdin: bytes | None = None
    stdout_path: str | None = None
    stderr_path: str | None = None


class Finished(NamedTuple):
    """How it ended.

    Attributes:
        exit_code: negative for the signal that ended it; None if it could not be started.
        stdout: text, undecodable bytes replaced; None where it went to a file.
        stderr: likewise.
        stopped: whether `stop` ended it.
        problem: why it could not be started; empty if it was.
        error_tail: the end of its standard error, wherever that went.
    """

    exit_code: int | None
    stdout: str | None = None
    stderr: str | None = None
    stopped: bool = False
    problem: str = ""
    error_tail: str = ""


def command_line(executable: str, arguments: Sequence[str], shell: bool) -> tuple[str, ...]:
    """Return the argv of a program; for a shell, one line whose arguments are quoted and whose command is not."""
    if not shell:
        return (executable, *arguments)
    return (" ".join([executable, *map(shlex.quote, arguments)]),)


class _Captured:
    """The beginning and the end of a stream, bounded in memory."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        self._left_out = 0

    def feed(self, data: bytes) -> None:
        room = KEEP - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._tail += data
            if len(self._tail) > 2 * KEEP:  # trimmed by halves, so that each byte is moved at most once
                self._trim()

    def _trim(self) -> None:
        extra = len(self._tail) - KEEP
        if extra > 0:
            del self._tail[:extra]
            self._left_out += extra

    def text(self) -> str:
        self._trim()
        parts = [self._head]
        if self._left_out:
            parts.append(bytearray(b"\n[... %d bytes left out ...]\n" % self._left_out))
        parts.append(self._tail)
        return b"".join(parts).decode("utf-8", "replace")


class _Running:
    """One executable of this process, from just before it starts until it has ended."""

    def __init__(self) -> None:
        self.stopped = False
        self.ended = threading.Event()
        self._lock = threading.Lock()  # no signal may go to a group whose number has been given to another
        self._group: int | None = None

    def signal(self, signum: int) -> None:
        with self._lock:
            if self._group is not None:
                kill_group(self._group, signum)

    def began(self, group: int) -> None:
        with self._lock:
            self._group = group
        if self.stopped:  # while it was starting
            self.signal(signal.SIGTERM)

    def over(self) -> None:
        """End what is left of the group; its leader is not reaped yet."""
        self.signal(signal.SIGKILL)
        with self._lock:
            self._group = None


_running: dict[Key, _Running] = {}


def announce(key: Key) -> None:
    """Say that `run` comes, so that `stop` from now on finds the executable."""
    _running[key] = _Running()


def retract(key: Key) -> None:
    """Say that `run` does not come after all."""
    _running.pop(key).ended.set()


def run(key: Key, command: Command, guard: Guard) -> Finished:
    """Run an executable to its end, in the calling thread; `key` is its session and uid, to stop it by.

    Its process group is ended with it: what it left running in the background gets SIGKILL. The end of the program
    ends the task, also while a grandchild still holds the pipe of its output.
    """
    execution = _running.setdefault(key, _Running())
    try:
        if execution.stopped:  # before it could start
            return Finished(None, stopped=True)
        try:
            process = _start(command, guard)
        except (OSError, ValueError, subprocess.SubprocessError) as error:  # not found, no such cwd, a NUL, ...
            return Finished(None, problem=f"could not start {command.argv[0]!r}: {error}", stopped=execution.stopped)
        return _follow(process, execution, command, guard)
    finally:
        execution.ended.set()
        del _running[key]


def _follow(process: subprocess.Popen[bytes], execution: _Running, command: Command, guard: Guard) -> Finished:
    captured = {stream: _Captured() for stream in (process.stdout, process.stderr) if stream is not None}
    try:
        execution.began(process.pid)
        guard.watch(process.pid)
        _drive(process, {stream.fileno(): sink for stream, sink in captured.items()})
    except OSError as error:  # no guard can be started, or its output cannot be read: it must not run on
        return Finished(None, problem=f"could not run {command.argv[0]!r}: {error}", stopped=execution.stopped)
    finally:
        execution.over()
        guard.unwatch(process.pid)
        process.wait()
        for stream in captured:
            stream.close()
    out = captured[process.stdout].text() if process.stdout is not None else None
    err = captured[process.stderr].text() if process.stderr is not None else None
    tail = "" if process.returncode == 0 else (err if err is not None else _tail_of(command.stderr_path))[-_ERROR_TAIL:]
    return Finished(process.returncode, out, err, execution.stopped, error_tail=tail)


def stop(keys: Iterable[Key], grace: float = GRACE) -> set[Key]:
    """Stop running executables of this process: SIGTERM to their groups, SIGKILL to those left after `grace` seconds.

    Blocks until they have ended. Returns those that were running.
    """
    executions = {key: execution for key in keys if (execution := _running.get(key)) is not None}
    deadline = time.monotonic() + grace
    for execution in executions.values():
        execution.stopped = True
        execution.signal(signal.SIGTERM)
    for execution in executions.values():
        if not execution.ended.wait(max(0.0, deadline - time.monotonic())):
            execution.signal(signal.SIGKILL)
            execution.ended.wait(GRACE)  # bounded: a process may hang in the kernel, beyond the reach of any signal
    return set(executions)


def running() -> list[Key]:
    """Return the executables that run in this process."""
    return list(_running)


def _start(command: Command, guard: Guard) -> subprocess.Popen[bytes]:
    environment = guard.environment()
    for name, value in (command.environment or {}).items():
        environment[os.fsencode(name)] = os.fsencode(value)
    files: list[int] = []
    try:
        stdin: int = subprocess.DEVNULL
        if command.stdin is not None:
            with tempfile.TemporaryFile() as spool:
                spool.write(command.stdin)
                spool.seek(0)
                files.append(stdin := os.dup(spool.fileno()))
        stdout, stderr = (
            _open_output(path, files) if path else subprocess.PIPE
            for path in (command.stdout_path, command.stderr_path)
        )
        return subprocess.Popen(
            command.argv[0] if command.shell else command.argv,
            shell=command.shell,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=command.cwd,
            env=environment,
            start_new_session=True,
        )
    finally:
        for fd in files:
            os.close(fd)


def _open_output(path: str, opened: list[int]) -> int:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    opened.append(fd := os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644))
    return fd


def _drive(process: subprocess.Popen[bytes], sinks: dict[int, _Captured]) -> None:
    """Read the pipes until the process itself has ended; it is left to be reaped."""
    poll = select.poll()
    for fd in sinks:
        os.set_blocking(fd, False)
        poll.register(fd, select.POLLIN)
    death = death_of(process.pid)
    if death is not None:
        poll.register(death, select.POLLIN)
    try:
        alive = True
        while alive:
            ready = poll.poll(None if death is not None else _LOOK_MS)
            alive = not (has_ended(process) if death is None else any(fd == death for fd, _ in ready))
            for fd, _ in ready:
                if fd != death and _drain(fd, sinks[fd]):
                    poll.unregister(fd)
        kill_group(process.pid, signal.SIGKILL)
        for fd, sink in sinks.items():
            _drain(fd, sink)
    finally:
        if death is not None:
            os.close(death)


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a child has ended; it is not reaped, so that its number stays its own."""
    look = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return process.returncode is not None or os.waitid(os.P_PID, process.pid, look) is not None


def _drain(fd: int, sink: _Captured) -> bool:
    """Read what is there, up to 1 MiB. Returns whether the pipe was closed at its other end."""
    for _ in range(16):
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            return True
        sink.feed(data)
    return False


def _tail_of(path: str | None) -> str:
    if path is None:
        return ""
    try:
        with Path(path).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _ERROR_TAIL))
            return file.read().decode("utf-8", "replace")
    except OSError as error:  # the program may have removed it
        return f"(its standard error cannot be read: {error})"
