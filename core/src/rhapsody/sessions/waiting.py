"""Notifies waiters when tasks end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol


class Watch(Protocol):
    """Somebody who waits for the ends of tasks."""

    def notify(self, ended: Sequence[str]) -> None:
        """Take the uids of tasks that have ended."""


class Ends:
    """Notifies waiters when tasks end."""

    def __init__(self) -> None:
        self._watches: list[Watch] = []

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._watches)

    def add(self, watch: Watch) -> None:
        """Notify this listener from now on."""
        self._watches.append(watch)

    def remove(self, watch: Watch) -> None:
        """Notify it no more."""
        self._watches.remove(watch)

    def notify(self, ended: Sequence[str]) -> None:
        """Notify all listeners of the uids of tasks that have ended."""
        for watch in self._watches:
            watch.notify(ended)

    async def wait(self, uids: Iterable[str]) -> None:
        """Wait until these tasks have ended."""
        countdown = _Countdown(set(uids))
        if not countdown.remaining:
            return
        self.add(countdown)
        try:
            await countdown.done
        finally:
            self.remove(countdown)


class _Countdown:
    """Waits for the last of some tasks."""

    def __init__(self, remaining: set[str]) -> None:
        self.remaining = remaining
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def notify(self, ended: Sequence[str]) -> None:
        self.remaining.difference_update(ended)
        if not self.remaining and not self.done.done():
            self.done.set_result(None)
