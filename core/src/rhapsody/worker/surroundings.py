"""Where a function task runs: the folder and the variables that it asks for, and those that it leaves behind."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rhapsody.protocol.frames import Setting
from rhapsody.protocol.trace import Trace
from rhapsody.worker.seeding import seeded
from rhapsody.worker.tracing import traced

_alone: Final = threading.RLock()  # held while the folder or the variables of this process are a task's


def as_set(function: Callable[..., Any], setting: Setting, uid: str) -> Callable[..., Any]:
    """Return the function, drawing from stream 0 of the seed and within the trace of its task, where it has these."""
    seed, _, _, trace, _ = setting
    if seed is not None:
        function = seeded(function, seed, 0)
    return function if trace is None else traced(function, Trace(*trace), uid)


@contextmanager
def surrounded(setting: Setting) -> Iterator[None]:
    """Change to the folder and set the variables of a task, and undo both.

    They are the process's: such tasks run one at a time in it.
    """
    _, folder, variables, *_ = setting
    if folder is None and not variables:
        yield
        return
    with _alone:
        before = Path.cwd() if folder is not None else None
        replaced = {name: os.environ.get(name) for name in variables or ()}
        try:
            if folder is not None:
                os.chdir(folder)
            _set(variables or {})
            yield
        finally:
            _set(replaced)
            if before is not None:
                os.chdir(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


class Surroundings:
    """The folder and the environment variables of this process, which each of its tasks finds as the first did.

    Nothing is done for it until `isolate` is called, for a process that runs one task at a time and nothing else.

    Attributes:
        changed: whether either may have been changed since the last check.
    """

    def __init__(self) -> None:
        self.changed = False
        self._isolated = False
        self._folder = ""
        self._variables: dict[str, str] = {}

    def isolate(self) -> None:
        """From now on, what a task changes is undone after it; that costs nothing where nothing is changed."""
        if not self._isolated:
            self._isolated = True
            self.keep()
            # An audit hook sees every way to change them, and is called for nothing that a short task does.
            sys.addaudithook(self._audit)

    def keep(self) -> None:
        """Take what is there for what tasks find: what a module sets when it is imported, say."""
        self.changed = False
        with contextlib.suppress(OSError):  # the folder has been removed
            self._folder = str(Path.cwd())
        self._variables = dict(os.environ)

    def restore(self) -> None:
        """Undo what a task has changed."""
        with contextlib.suppress(OSError):  # as above; then the next task finds the one that the last has chosen
            os.chdir(self._folder)
        now = dict(os.environ)
        if now != self._variables:
            _set({name: self._variables.get(name) for name in {*now, *self._variables}})
        self.changed = False

    def _audit(self, event: str, _: tuple[object, ...]) -> None:
        if event in _CHANGES:
            self.changed = True


_CHANGES: Final = frozenset({"os.chdir", "os.putenv", "os.unsetenv"})
SURROUNDINGS: Final = Surroundings()
