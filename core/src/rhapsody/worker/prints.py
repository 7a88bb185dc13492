"""Keeps what a function prints, for tasks that ask for it; what others print goes where it always does.

`sys.stdout` and `sys.stderr` are replaced only while such a task runs. What it prints from threads that it starts, and
what executables that it starts write, is not kept: these do not write to `sys.stdout`, or know nothing of the task.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final

from rhapsody.worker.capture import Captured

_current: Final[ContextVar[Prints | None]] = ContextVar("rhapsody_prints", default=None)
_lock: Final = threading.Lock()
_asking = 0  # tasks that run and ask for it
_STREAMS: Final = ("stdout", "stderr")


class Prints:
    """What one function prints, bounded in memory as the output of an executable is. Use it as a context."""

    def __init__(self) -> None:
        self._captured = {name: Captured() for name in _STREAMS}

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that keeps what the other prints, in whatever context it is called."""

        def call(*args: Any, **kwargs: Any) -> Any:
            _current.set(self)  # for good: the context is the call's own
            return function(*args, **kwargs)

        return call

    def feed(self, stream: str, text: str) -> None:
        """Take what was printed."""
        self._captured[stream].feed(text.encode("utf-8", "surrogateescape"))

    @property
    def texts(self) -> tuple[str, str]:
        """What was printed to standard output, and to standard error."""
        return self._captured["stdout"].text(), self._captured["stderr"].text()

    def __enter__(self) -> Prints:
        """Replace the streams, if no task has done so."""
        global _asking
        with _lock:
            _asking += 1
            for name in _STREAMS:
                stream = getattr(sys, name)
                if not isinstance(stream, _Divided):
                    setattr(sys, name, _Divided(name, stream))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put them back, if no other task needs them."""
        global _asking
        with _lock:
            _asking -= 1
            for name in _STREAMS:
                stream = getattr(sys, name)
                if not _asking and isinstance(stream, _Divided):
                    setattr(sys, name, stream.others)


class _Divided(io.TextIOBase):
    """Divides what is written between the tasks that ask for it, and all others."""

    def __init__(self, name: str, others: Any) -> None:
        self._name = name
        self.others = others

    def write(self, text: str) -> int:
        prints = _current.get()
        if prints is None:
            return self.others.write(text) if self.others is not None else len(text)
        prints.feed(self._name, text)
        return len(text)

    def flush(self) -> None:
        if _current.get() is None and self.others is not None:
            self.others.flush()

    def writable(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.others, name)
