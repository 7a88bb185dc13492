"""Runs one executable to its end, in a process group of its own; standard library only."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from rhapsody.protocol.command import Command, Finished
from rhapsody.worker.capture import ERROR_TAIL, Captured, drain, tail_of
from rhapsody.worker.children import has_ended
from rhapsody.worker.guard_process import Guard, death_of, kill_group
from rhapsody.worker.shortage import Starts
from rhapsody.worker.startup import not_started

GRACE: Final = 3.0  # seconds from SIGTERM to SIGKILL
Key = tuple[str, str]  # session and task: two sessions of one process may use the same uid
_POLL_MS: Final = 20  # between two polls for the end of an executable, where no descriptor shows it


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
_starts: Final = Starts()


def announce(key: Key) -> None:
    """Say that `run` comes, so that `stop` from now on finds the executable."""
    _running[key] = _Running()


def retract(key: Key) -> None:
    """Say that `run` does not come after all."""
    _running.pop(key).ended.set()


def run(key: Key, command: Command, guard: Guard) -> Finished:
    """Run an executable to its end, in the calling thread; `key` is its session and uid, to stop it by.

    What the machine lacks for a moment is waited for, as long as other executables of this process run. Its process
    group is ended with it: what it left running in the background gets SIGKILL. The end of the program ends the task,
    also while a grandchild still holds the pipe of its output.
    """
    execution = _running.setdefault(key, _Running())
    try:
        if execution.stopped:  # before it could start
            return Finished(None, stopped=True)
        try:
            process = _starts.start(lambda: _start(command, guard), lambda: execution.stopped)
        except (OSError, ValueError, subprocess.SubprocessError) as error:  # not found, no such cwd, a NUL, ...
            return not_started(command, error, stopped=execution.stopped)
        if process is None:  # it waited for room
            return Finished(None, stopped=True)
        try:
            return _follow(process, execution, command, guard)
        finally:
            _starts.over()
    finally:
        execution.ended.set()
        del _running[key]


def _follow(process: subprocess.Popen[bytes], execution: _Running, command: Command, guard: Guard) -> Finished:
    captured = {stream: Captured() for stream in (process.stdout, process.stderr) if stream is not None}
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
    tail = "" if process.returncode == 0 else (err if err is not None else tail_of(command.stderr_path))[-ERROR_TAIL:]
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
        if value is None:
            environment.pop(os.fsencode(name), None)
        else:
            environment[os.fsencode(name)] = os.fsencode(value)
    # All are opened here: before Python 3.11.4 a Popen that opens some and is refused another leaves them open.
    theirs: list[int] = []
    ours: list[int | None] = []
    try:
        if command.stdin_path is not None:
            theirs.append(os.open(command.stdin_path, os.O_RDONLY))
        elif command.stdin is None:
            theirs.append(os.open(os.devnull, os.O_RDONLY))
        else:
            with tempfile.TemporaryFile() as spool:
                spool.write(command.stdin)
                spool.seek(0)
                theirs.append(os.dup(spool.fileno()))
        for path in (command.stdout_path, command.stderr_path):
            if path is not None and ours and path == command.stdout_path:  # one file for both
                reader, writer = None, os.dup(theirs[-1])
            else:
                reader, writer = (None, _open_output(path)) if path else os.pipe()
            theirs.append(writer)
            ours.append(reader)
        stdin, stdout, stderr = theirs
        process = subprocess.Popen(
            command.argv[0] if command.shell else command.argv,
            shell=command.shell,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=command.cwd,
            env=environment,
            start_new_session=True,
        )
        process.stdout, process.stderr = (None if fd is None else os.fdopen(fd, "rb") for fd in ours)
        ours.clear()
        return process
    finally:
        for fd in (*theirs, *(fd for fd in ours if fd is not None)):
            os.close(fd)


def _open_output(path: str) -> int:
    Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # the session's folder
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)


def _drive(process: subprocess.Popen[bytes], sinks: dict[int, Captured]) -> None:
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
            ready = poll.poll(None if death is not None else _POLL_MS)
            alive = not (has_ended(process) if death is None else any(fd == death for fd, _ in ready))
            for fd, _ in ready:
                if fd != death and drain(fd, sinks[fd]):
                    poll.unregister(fd)
        kill_group(process.pid, signal.SIGKILL)
        for fd, sink in sinks.items():
            drain(fd, sink)
    finally:
        if death is not None:
            os.close(death)
