"""The guard of one backend: what it starts ends with the session, or with the program, whatever ends that."""

from __future__ import annotations

import contextlib
import os
import subprocess
from asyncio.subprocess import Process as AsyncProcess
from collections.abc import Iterator
from typing import Final

from rhapsody.errors import InvalidBackendError, describe
from rhapsody.worker.guard_process import MARK, Guard, name_of

_TITLES: Final = "SPT_NOENV"  # keeps setproctitle from writing a process's title over its environment, and so the mark
Watched = int | subprocess.Popen[bytes] | subprocess.Popen[str] | AsyncProcess


class BackendGuard:
    """Ends what a backend has started, should its shutdown, or the whole program, end without doing so.

    Core makes it, and closes it after `rhapsody_shutdown` has returned or raised: whatever is still watched or marked
    gets SIGTERM, and SIGKILL a second later. A process beside the program does the same when the program dies, of
    SIGKILL too. That process is started with the first call of a method. Safe from any thread.
    """

    def __init__(self) -> None:
        self._guard = Guard()
        self._names: dict[int, bytes] = {}

    def environment(self) -> dict[str, str]:
        """Return this process's environment with a mark, by which what is started with it, and its children, are found.

        Raises:
            OSError: the guard cannot be started.
        """
        marked = {os.fsdecode(name): os.fsdecode(value) for name, value in self._guard.environment().items()}
        return {**marked, _TITLES: "1"}

    @contextlib.contextmanager
    def marking(self) -> Iterator[None]:
        """Mark what is started meanwhile by code that passes no environment on, such as a library's `start`.

        The mark is in `os.environ` for that time, so what other threads start meanwhile is marked too.
        """
        marks = {name: self.environment()[name] for name in (os.fsdecode(MARK), _TITLES)}
        held = {name: os.environ.get(name) for name in marks}
        os.environ.update(marks)
        try:
            yield
        finally:
            for name, value in held.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def watch(self, process: Watched) -> None:
        """Watch a process, given as its number or its object: the group that it leads, or else the process alone.

        Raises:
            InvalidBackendError: no process, or this one.
            OSError: the guard cannot be started.
        """
        pid = _pid_of(process)
        try:
            leads = os.getpgid(pid) == pid
        except ProcessLookupError:  # it has ended
            return
        if (name := name_of(pid, leads)) is not None:
            self._names[pid] = name
            self._guard.name(name)

    def unwatch(self, process: Watched) -> None:
        """Take a process back: it has ended, or is to outlive the session."""
        if (name := self._names.pop(_pid_of(process), None)) is not None:
            self._guard.unname(name)

    def watch_mark(self, name: str, value: str) -> None:
        """Watch every process of this user that has a variable in its environment: a mark that the engine sets itself.

        Raises:
            InvalidBackendError: a name or value that no variable can have, or that is empty.
            OSError: the guard cannot be started.
        """
        text = f"{name}={value}"
        if not name or not value or "=" in name or "\n" in text or "\0" in text:
            raise InvalidBackendError(f"no process can be found by the variable {describe(name)}={describe(value)}")
        self._guard.name(b"e" + os.fsencode(text))

    @property
    def is_used(self) -> bool:
        """Whether it has anything to end."""
        return self._guard.is_up

    def close(self) -> None:
        """End what is left. Core's. May block for seconds."""
        self._names.clear()
        self._guard.close()


def _pid_of(process: object) -> int:
    pid = process if isinstance(process, int) else getattr(process, "pid", None)
    if type(pid) is not int or pid < 2 or pid == os.getpid():
        raise InvalidBackendError(
            f"guard.watch takes a process that the backend has started, or its number, not {describe(process)}"
        )
    return pid
