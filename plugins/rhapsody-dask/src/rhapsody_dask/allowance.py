"""How many tasks of a batch a worker may begin: agreed with the scheduler, which outlives the worker's machine.

A worker records what it begins in a file of its machine, which nobody can read once the machine is lost, or cut off. So
a worker of another machine than the client's asks the scheduler before a task begins: what the scheduler was not asked
for has not begun. It asks for the whole batch first. When a task takes longer than a report waits, it gives back what
has not begun, and then asks for as many at a time as it has last begun between two reports: one question in that time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

WHOLE: Final = 2**31  # tasks: more than a batch has


class Allowance:
    """What one worker may begin of one batch.

    Args:
        ask: returns whether so many tasks of the batch, from its first, may begin; blocks, on the batch's thread.

    Attributes:
        is_refused: whether the scheduler has said no; it then takes the worker for lost.
    """

    def __init__(self, ask: Callable[[int], bool]) -> None:
        self.is_refused = False
        self._ask = ask
        self._lock = threading.Lock()
        self._begun = 0
        self._allowed = 0
        self._step = WHOLE
        self._reported = 0

    def take(self) -> bool:
        """Begin one more task, if it may begin; called before each, on the batch's thread."""
        with self._lock:
            if self._begun < self._allowed:
                self._begun += 1
                return True
            wanted = self._begun + self._step
        if self.is_refused or not self._ask(wanted):
            self.is_refused = True
            return False
        with self._lock:
            self._allowed = wanted
            self._begun += 1
            return True

    def give_back(self) -> int:
        """Return how many tasks have begun; further ones need another question."""
        with self._lock:
            self._allowed = self._begun
            self._step = max(1, self._begun - self._reported)
            self._reported = self._begun
            return self._begun
