"""A small process that stands over RADICAL-Pilot and lets nothing of it survive.

RADICAL-Pilot daemonizes some thirty processes, which belong to nobody once their parent is gone. So its client runs
below this process, which adopts whatever is orphaned underneath (a "child subreaper", Linux), and ends all of it when
one of these happens:

- the client ends, in good order or not;
- the process that started the keeper dies, however it dies: the lifeline closes, or the parent's number changes. The
  client is asked to cancel its pilot first, and has `GRACE` seconds for it;
- the parent writes to the lifeline: everything ends now.

Run as a file by a bare interpreter, standard library only: `keeper.py LIFELINE_FD SID -- COMMAND...`. Its standard
input and output go to the command untouched.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

GRACE = 15.0  # seconds for the client to cancel its pilot once nobody owns it
TERM_GRACE = 1.0  # seconds from SIGTERM to SIGKILL for what the client left behind
POLL = 0.2  # seconds between looks at who is alive
_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> bool:
    """Adopt orphaned descendants. Returns False where the system has no such thing."""
    if not sys.platform.startswith("linux"):
        return False
    return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def descendants(root: int) -> list[int]:
    """Return the living descendants of a process, from /proc; empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            stat = entry.read_text(errors="replace")
        except OSError:  # it ended while we looked
            continue
        state, ppid = stat.rpartition(")")[2].split()[:2]
        if state != "Z":
            children.setdefault(int(ppid), []).append(int(entry.parent.name))
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


class Keeper:
    """Watches one client and whatever it starts."""

    def __init__(self, lifeline: int, sid: str, command: list[str]) -> None:
        self._lifeline = lifeline
        self._sid = sid
        self._command = command
        self._parent = os.getppid()
        self._client_alive = True
        self._told_to_end = False

    def run(self) -> None:
        """Run the command to its end, and end everything that it left."""
        adopts = become_subreaper()
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, self._on_term)
        client = subprocess.Popen(self._command)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)  # the client alone holds its pipes now
        os.dup2(null, 1)
        try:
            self._watch(client.pid)
        finally:
            self._sweep(client.pid, adopts)
            self._clean()
            client.returncode = 0  # it was reaped by number, together with all the others

    def _on_term(self, signum: int, frame: FrameType | None) -> None:
        self._told_to_end = True

    def _watch(self, client: int) -> None:
        poll = select.poll()
        poll.register(self._lifeline, select.POLLIN)
        deadline: float | None = None
        while self._reap(client):
            orphaned = self._told_to_end or os.getppid() != self._parent
            if poll.poll(POLL * 1000):
                if os.read(self._lifeline, 1):  # the parent has no time left
                    return
                poll.unregister(self._lifeline)  # closed: the parent is gone
                orphaned = True
            if orphaned and deadline is None:
                deadline = time.monotonic() + GRACE
                os.kill(client, signal.SIGTERM)
            if deadline is not None and time.monotonic() > deadline:
                return

    def _reap(self, client: int) -> bool:
        """Collect what has ended. Returns whether the client lives."""
        with contextlib.suppress(ChildProcessError):  # no child at all
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                self._client_alive = self._client_alive and pid != client
        return self._client_alive

    def _sweep(self, client: int, adopts: bool) -> None:
        if not adopts:  # its process group is what can be found of it
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                os.killpg(os.getpgrp(), signal.SIGTERM)
        deadline = time.monotonic() + TERM_GRACE
        signum = signal.SIGTERM
        while alive := descendants(os.getpid()):
            if time.monotonic() > deadline:
                signum = signal.SIGKILL
            for pid in alive:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signum)
            time.sleep(0.05)
            self._reap(client)

    def _clean(self) -> None:
        """Remove what RADICAL-Pilot leaves in the folder for temporary files."""
        temporary = Path(tempfile.gettempdir())
        shutil.rmtree(temporary / self._sid, ignore_errors=True)
        for path in temporary.glob("rp.agent_cfg.*"):
            with contextlib.suppress(OSError):  # another user's, or already gone
                if self._sid.encode() in path.read_bytes():
                    path.unlink()


if __name__ == "__main__":
    Keeper(int(sys.argv[1]), sys.argv[2], sys.argv[4:]).run()
