"""The process that owns a runtime of ours, and outlives the user's process to end it; and how that one is used.

It (`python -m rhapsody_dragon.guard '{...}'`) runs in a session of its own, so that neither a Ctrl-C in the user's
terminal nor the end of the user's process reaches it. It starts Dragon's launcher as its child, and is the
`Subreaper` of everything below: the processes of this runtime are its own descendants, however they detach themselves.
The files of this runtime in shared memory are those which its processes have mapped, remembered with their inode.

It ends the runtime when its input says so or closes, when the user's process is gone (a pidfd, which neither SIGKILL
nor a reused pid can deceive), on SIGTERM, or when the launcher ends by itself. First in order: the head process leaves
and Dragon tears itself down. Whatever is then left is killed, and the files are removed.

Its messages, one JSON object a line on its standard output:

    {"starting": PART}                                 what is being waited for: "launcher", "services", "head"
    {"ready": {...}, "attach_dir": DIR, "home": DIR}   Dragon's own description of the runtime, with its token
    {"failed": PART, "detail": TEXT}                   it did not start; everything is cleaned up already
    {"lost": TEXT}                                     it ended later; everything is cleaned up already
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from rhapsody.errors import BackendStartError
from rhapsody.worker import Subreaper, descendants

from .startup_checks import PARTS, launcher_environment, start_error

#: The marker of the head's line; what follows is secret and is passed to the user's process alone.
MARKER: Final = b"RHAPSODY_DRAGON_HEAD "
#: Seconds for Dragon's own orderly end (measured: 0.7) before what is left is killed.
GRACE: Final = 6.0
#: Seconds between two checks of which files of shared memory are mapped, while nothing else happens.
SURVEY: Final = 5.0
#: How much of the launcher's output is kept to explain a failure, in bytes.
TAIL: Final = 8192
#: Seconds for the guard to leave nothing; its own bounds add up to less.
END_DEADLINE: Final = 20.0
#: Dragon's `dragon` command, found by import and not by PATH.
LAUNCHER: Final = "import sys; from dragon.launcher.launch_selector import main; sys.exit(main())"

#: Runs inside the runtime as its head process: says what is needed to attach, then waits until the pipe is closed.
HEAD: Final = """
import json, pathlib, sys
from dragon.infrastructure import facts
from dragon.utils import get_local_kv
info = json.loads(get_local_kv(facts.ATTACH_INFO_KVS_KEY, timeout=30))
sys.stdout.write({marker!r} + json.dumps(info) + "\\n")
sys.stdout.flush()
with open({fifo!r}, "rb") as stop:
    stop.read()
"""


class GuardedRuntime:
    """Starts the guard, which starts the runtime, reads its messages, and has it end the runtime.

    The runtime is to be up within `deadline` seconds; with `telemetry` Dragon may sample, if its environment says so.
    """

    def __init__(self, deadline: float, telemetry: bool) -> None:
        # The port binds nothing on a single node; it makes the uid of the runtime. That must be its own: Dragon's
        # library takes the pools of two runtimes of one uid for the same, also when one came after the other.
        port = 10_000 + secrets.randbelow(50_000)
        settings = {"owner": os.getpid(), "deadline": deadline, "port": port, "telemetry": telemetry}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rhapsody_dragon.guard", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.pid = self._process.pid
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._rest = b""
        self._messages: deque[dict[str, Any]] = deque()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def _next(self, seconds: float | None) -> dict[str, Any] | None:
        """Return the next message; None if there is none after so many seconds."""
        poll = select.poll()
        poll.register(self._output, select.POLLIN)
        while not self._messages and poll.poll(None if seconds is None else seconds * 1000):
            data = os.read(self._output.fileno(), 65536)
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._messages.extend(map(json.loads, lines))
            if not data:
                self._messages.append({"lost": "its guard process was killed"})
        return self._messages.popleft() if self._messages else None

    def wait_until_ready(self, until: float, report: Callable[[str], None], give_up: threading.Event) -> dict[str, Any]:
        """Wait for the runtime to be up; ends it and raises BackendStartError, naming the part, if it does not come."""
        part, problem = "launcher", None
        while problem is None:
            message = self._next(0.1) or {}
            if "ready" in message:
                return message
            if "starting" in message:
                part = message["starting"]
                report(PARTS[part].waits_for)
            elif message:
                part = message.get("failed", part)
                problem = message.get("detail") or message["lost"]
            elif give_up.is_set() or time.monotonic() >= until:
                problem = "interrupted" if give_up.is_set() else "the deadline has passed"
        self.end()
        raise start_error(part, problem)

    def watch(self, on_lost: Callable[[str], None]) -> None:
        """From now on call `on_lost`, from another thread, when the runtime ends by itself."""

        def wait() -> None:
            message = self._next(None)
            if message is not None and not self._ending.is_set():
                on_lost(message["lost"])

        self._thread = threading.Thread(target=wait, name="rhapsody-dragon-guard", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Have the guard end the runtime, and wait until nothing is left."""
        self._ending.set()
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            os.write(self._input.fileno(), b".")  # what this process has forked may hold the pipe open
        self._input.close()
        try:
            self._process.wait(END_DEADLINE)
        except subprocess.TimeoutExpired:  # its own bounds have failed: it goes, and what it holds is reported as lost
            self._process.kill()
            self._process.wait()
        if self._thread is not None:
            self._thread.join(END_DEADLINE)
        self._output.close()


def start_guarded(
    until: float, report: Callable[[str], None], give_up: threading.Event, telemetry: bool
) -> tuple[GuardedRuntime, dict[str, Any]]:
    """Start a runtime under its guard, and return both the guard and its first message.

    Tried once more where Dragon (0.15) finds the lock of its own answers in use, as its head process does now and then.
    """
    is_last = False
    while True:
        guarded = GuardedRuntime(max(1.0, until - time.monotonic() - 2.0), telemetry)
        try:
            return guarded, guarded.wait_until_ready(until, report, give_up)
        except BackendStartError as error:
            if is_last or "DRAGON_LOCK_ALREADY_INITD" not in str(error):
                raise
            is_last = True


class Guard:
    """The launcher, what it started, and what must be gone afterwards: in the guard process, beside the `owner`'s."""

    def __init__(self, owner: int, deadline: float, port: int, telemetry: bool) -> None:
        self.part = "launcher"
        self.is_ready = False
        self._deadline = time.monotonic() + deadline
        self._files: set[tuple[str, int]] = set()
        self._tail = b""
        self._home = Path(tempfile.mkdtemp(prefix="rhapsody-dragon-"))
        self._fifo = self._home / "stop"
        self._owner = os.pidfd_open(owner)
        self._is_orphan = os.getppid() != owner  # it died before it could be watched
        self._subreaper = Subreaper()
        self._codes: dict[int, int] = {}  # exit codes by number; the subreaper collects the launcher too
        self._command = [sys.executable, "-c", LAUNCHER, "-s", "-a", "-p", str(port), str(self._home / "head.py")]
        self._environment = launcher_environment(self._home / "attach", telemetry)
        self._launcher: subprocess.Popen[bytes] | None = None
        self._output = self._ended = -1

    def start(self) -> None:
        """Start the launcher, in a folder of its own for whatever it may write."""
        os.mkfifo(self._fifo, 0o600)
        (self._home / "head.py").write_text(HEAD.format(marker=MARKER.decode(), fifo=str(self._fifo)))
        self.say(starting=self.part)
        self._output, theirs = os.pipe()
        # No session of its own: Dragon makes it the leader of a process group, which a session's leader cannot become.
        self._launcher = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.STDOUT,
            cwd=self._home,
            env=self._environment,
        )
        os.close(theirs)
        self._ended = os.pidfd_open(self._launcher.pid)

    def say(self, **message: object) -> None:
        """Send a message to the user's process, if it is still there to read it."""
        with contextlib.suppress(BrokenPipeError):
            os.write(1, json.dumps(message).encode() + b"\n")

    def watch(self) -> str | None:
        """Wait until this runtime has to end. Returns why it ended by itself, or None when it was asked to."""
        if self._is_orphan:
            return None
        surveyed, awaited = time.monotonic(), [0, self._owner, self._output, self._ended]
        while True:
            readable, _, _ = select.select(awaited, [], [], SURVEY if self.is_ready else 0.2)
            if 0 in readable or self._owner in readable:
                return None
            # Whatever it has started may hold its output after its end.
            if not self._read() if self._output in readable else self._ended in readable:
                return self._how_launcher_ended()
            if not self.is_ready:
                self._advance()
                if time.monotonic() >= self._deadline:
                    return "the deadline has passed"
            if time.monotonic() - surveyed >= SURVEY:
                surveyed = time.monotonic()
                self._survey()

    def end(self) -> None:
        """Leave nothing: in order first, then by force. Bounded to about 17 seconds."""
        self._survey()
        if self.is_ready and self._is_launched():
            # The head waits for the other end of this pipe; without a reader (it has died) opening fails at once.
            with contextlib.suppress(OSError):
                os.close(os.open(self._fifo, os.O_WRONLY | os.O_NONBLOCK))
            until = time.monotonic() + GRACE
            while self._is_launched() and time.monotonic() < until:
                # A full pipe must not hold it up; one that is closed is readable for ever.
                if select.select([self._output], [], [], 0.02)[0] and not self._read():
                    time.sleep(0.02)
                self._survey()
        self._subreaper.end()
        for name, inode in self._files:
            # Dragon removed it, or somebody else's runtime has a file of this name now: another inode.
            with contextlib.suppress(OSError):
                if Path(name).stat().st_ino == inode:
                    Path(name).unlink()
        shutil.rmtree(self._home, ignore_errors=True)

    def explain(self) -> str:
        """Return the end of the launcher's output, without the line that holds the token."""
        lines = [line for line in self._tail.decode(errors="replace").splitlines() if MARKER.decode() not in line]
        return "\n".join(lines[-40:]).strip()

    def _survey(self) -> None:
        """Remember the files that this runtime's processes have mapped now, and collect those that have ended."""
        for pid in descendants(os.getpid()):
            self._files.update(mapped_files(pid))
        self._codes |= self._subreaper.reap()

    def _is_launched(self) -> bool:
        self._codes |= self._subreaper.reap()
        return self._launcher is not None and self._launcher.pid not in self._codes

    def _how_launcher_ended(self) -> str:
        select.select([self._ended], [], [], GRACE)  # it may have closed its output only
        if self._is_launched() or self._launcher is None:
            return "Dragon's launcher closed its output"
        return f"Dragon's launcher ended with exit code {self._codes[self._launcher.pid]}"

    def _advance(self) -> None:
        """Notice which part of the runtime is up, and say what is waited for now."""
        part = self.part
        if part == "launcher":
            self._survey()
            part = "services" if self._files else part
        elif part == "services" and (self._home / "attach" / "attach_info.txt").exists():
            part = "head"
        if part != self.part:
            self.part = part
            self.say(starting=part)

    def _read(self) -> bool:
        """Take in output of the launcher: the head's line once, afterwards only a tail for explanations."""
        data = os.read(self._output, 65536)
        self._tail += data
        if not self.is_ready:
            before, marker, after = self._tail.partition(MARKER)
            line, newline, rest = after.partition(b"\n")
            if marker and newline:
                self._tail = before + rest  # the token leaves the tail
                self.is_ready = True
                self._survey()
                self.say(ready=json.loads(line), attach_dir=str(self._home / "attach"), home=str(self._home))
        if self.is_ready:
            self._tail = self._tail[-TAIL:]
        return bool(data)


def mapped_files(pid: int) -> Iterator[tuple[str, int]]:
    """Yield the files of Dragon in /dev/shm which a process has mapped, each with its inode."""
    with contextlib.suppress(OSError):  # the process has ended, or is a zombie
        for line in Path("/proc", str(pid), "maps").read_text(errors="replace").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith("/dev/shm/D") and not fields[5].endswith(" (deleted)"):  # noqa: S108 - where shm_open(3) puts its objects; Dragon's begin with DRAGON_MEMORY_DEFAULT_FILE_PREFIX
                yield fields[5], int(fields[4])


def main(settings: dict[str, Any]) -> None:
    """Run one runtime from start to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):  # end in order, whatever is awaited
        signal.signal(number, signal.default_int_handler)
    guard = Guard(**settings)
    why = "its guard process was asked to end it"
    try:
        guard.start()
        why = guard.watch() or why
    except KeyboardInterrupt:
        pass
    except OSError as error:
        why = str(error)
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        guard.end()
    detail = f"{why}\n{guard.explain()}".strip()
    if guard.is_ready:
        guard.say(lost=detail)
    else:
        guard.say(failed=guard.part, detail=detail)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
