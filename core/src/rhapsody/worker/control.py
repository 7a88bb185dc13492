"""Which tasks of a batch may begin and which one runs, between the thread that runs the batch and those that cancel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable


class BatchControl:
    """Claims and withdraws the tasks of one batch, and knows which one runs. Safe from any thread.

    Give its methods to `run_batch(payload, control.report, control.claim)`. Claiming and withdrawing exclude each
    other, so an answer is final the moment that it is given. A subclass extends `report` to carry the frames.

    Args:
        note: called before a task begins, with the number of tasks that were asked for so far: for a record that
            outlives the process, such as `Progress`.

    Attributes:
        lock: whoever holds it keeps tasks from beginning and `running` from changing. Reentrant.
        running: uid of the task that runs, from its claim to its report.
    """

    def __init__(self, note: Callable[[int], object] | None = None) -> None:
        self.lock = threading.RLock()
        self.running: str | None = None
        self._note = note
        self._asked = 0
        self._begun: set[str] = set()
        self._withdrawn: set[str] = set()

    def claim(self, uid: str) -> bool:
        """Begin a task unless it was withdrawn; called once for each task, in the order of the batch."""
        with self.lock:
            self._asked += 1
            if uid in self._withdrawn:
                return False
            if self._note is not None:  # before it begins: what is not noted has not begun
                self._note(self._asked)
            self._begun.add(uid)
            self.running = uid
            return True

    def report(self, frame: bytes) -> None:
        """Take the frame of the task that ran."""
        with self.lock:
            self.running = None

    def withdraw(self, uids: Iterable[str]) -> list[str]:
        """Keep tasks from beginning. Returns those that have not begun, and now never will."""
        with self.lock:
            waiting = [uid for uid in uids if uid not in self._begun]
            self._withdrawn.update(waiting)
            return waiting

    def may_run(self, uid: str) -> bool:
        """Return whether a task runs, or may still begin."""
        with self.lock:
            return uid == self.running or not (uid in self._begun or uid in self._withdrawn)
