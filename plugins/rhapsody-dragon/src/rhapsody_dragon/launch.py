"""This end of the pipes to the watchdog process (`watchdog.py`), which owns a runtime of ours."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from .parts import PARTS, start_error

#: Seconds for the watchdog to leave nothing; its own bounds add up to less.
END_DEADLINE: Final = 18.0


class Watchdog:
    """Starts the watchdog, which starts the runtime; hears from it, and tells it to end the runtime.

    Args:
        deadline: seconds for the runtime to be up.
    """

    def __init__(self, deadline: float) -> None:
        # The port binds nothing on a single node; it makes the uid of the runtime. That must be its own: Dragon's
        # library takes the pools of two runtimes of one uid for the same, also when one came after the other.
        settings = {"owner": os.getpid(), "deadline": deadline, "port": 10_000 + secrets.randbelow(50_000)}
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("watchdog.py")), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._changed = threading.Condition()
        self._starting: list[str] = []
        self._ready: dict[str, Any] | None = None
        self._over: dict[str, Any] | None = None
        self._ending = False
        self._on_lost: Callable[[str], None] | None = None
        self._thread = threading.Thread(target=self._listen, name="rhapsody-dragon-watchdog", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._hear(json.loads(line))
        self._hear({"lost": "its watchdog process was killed"})

    def _hear(self, message: dict[str, Any]) -> None:
        tell = None
        with self._changed:
            if "starting" in message:
                self._starting.append(message["starting"])
            elif "ready" in message:
                self._ready = message
            elif self._over is None:
                self._over = message
                if self._ready is not None and not self._ending:
                    tell = self._on_lost
            self._changed.notify_all()
        if tell is not None:
            tell(message.get("lost") or "it was told to")

    def wait_until_ready(self, until: float, report: Callable[[str], None], give_up: threading.Event) -> dict[str, Any]:
        """Wait for the runtime to be up; ends it and raises BackendStartError, naming the part, if it does not come."""
        part = "launcher"
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._starting or self._ready or self._over, 0.1)
                news, self._starting = self._starting, []
                ready, over = self._ready, self._over
            for part in news:
                report(PARTS[part].waits_for)
            if ready is not None:
                return ready
            if over is not None:
                self.end()
                raise start_error(over.get("failed", part), over.get("detail") or over.get("lost") or "no reason given")
            if give_up.is_set() or time.monotonic() >= until:
                self.end()
                raise start_error(part, "interrupted" if give_up.is_set() else "the deadline has passed")

    def watch(self, on_lost: Callable[[str], None]) -> None:
        """From now on say so when the runtime ends by itself."""
        with self._changed:
            self._on_lost = on_lost
            over = self._over
        if over is not None:
            on_lost(over.get("lost") or "it was told to")

    def end(self) -> None:
        """Tell the watchdog to end the runtime, and wait until nothing is left."""
        with self._changed:
            self._ending = True
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:  # it has ended already
            pass
        try:
            self._process.wait(END_DEADLINE)
        except subprocess.TimeoutExpired:  # its own bounds have failed: it goes, and what it holds is reported as lost
            self._process.kill()
            self._process.wait()
        self._thread.join(END_DEADLINE)
