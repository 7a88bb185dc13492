"""The process that owns a runtime of ours, and outlives the user's process to end it.

It is run by path with the standard library alone (`python -I watchdog.py '{...}'`), in a session of its own, so that
neither a Ctrl-C in the user's terminal nor the death of the user's process reaches it. It starts Dragon's launcher as
its child and is the *subreaper* of everything below (prctl(2)), so the processes of this runtime are exactly its own
descendants, however they detach themselves: nothing is ever looked for by name. The files of this runtime in shared
memory are those which its processes have mapped, remembered with their inode.

It ends the runtime when it is told to, when its input closes, when the user's process is gone (a pidfd, which neither
SIGKILL nor a reused pid can deceive), on SIGTERM, or when the launcher ends by itself. First in order: the head process
leaves and Dragon tears itself down. Whatever is then left is killed, and the files are removed.

What it says, one JSON object a line on its standard output:

    {"starting": PART}                     what is being waited for: "launcher", "services", "head"
    {"ready": {...}, "attach_dir": DIR}    Dragon's own description of the runtime, with the token to attach
    {"failed": PART, "detail": TEXT}       it did not start; everything is cleaned up already
    {"lost": TEXT}                         it ended by itself, later; everything is cleaned up already
    {"ended": {"killed": N, "files": N}}   it ended because it was told to
"""

import contextlib
import ctypes
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

#: The marker of the head's line; what follows is secret and is passed to the user's process alone.
MARKER = b"RHAPSODY_DRAGON_HEAD "
#: Seconds for Dragon's own orderly end (measured: 0.7) before what is left is killed.
GRACE = 6.0
#: Seconds between two looks at which files of shared memory are mapped, while nothing else happens.
SURVEY = 5.0
#: How much of the launcher's output is kept to explain a failure, in bytes.
TAIL = 8192
PR_SET_CHILD_SUBREAPER = 36

#: Dragon's `dragon` command, found by import and not by PATH.
LAUNCHER = "import sys; from dragon.launcher.launch_selector import main; sys.exit(main())"

#: Runs inside the runtime as its head process: says what is needed to attach, then waits until the pipe is closed.
HEAD = """
import json, pathlib, sys
from dragon.infrastructure import facts
from dragon.utils import get_local_kv
info = json.loads(get_local_kv(facts.ATTACH_INFO_KVS_KEY, timeout=30))
sys.stdout.write({marker!r} + json.dumps(info) + "\\n")
sys.stdout.flush()
with open({fifo!r}, "rb") as stop:
    stop.read()
"""


def descendants() -> list[int]:
    """The pids below this process, zombies included, read from /proc."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names are what is wanted
        if entry.isdigit():
            # A process that ended between the listing and the reading is no longer of interest.
            with contextlib.suppress(OSError):
                stat = pathlib.Path("/proc", entry, "stat").read_text(encoding="utf-8", errors="replace")
                parent = int(stat.rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            found.append(pid)
            waiting.append(pid)
    return found


def mapped_files(pid: int) -> Iterator[tuple[str, int]]:
    """The files of Dragon in /dev/shm which a process has mapped, each with its inode."""
    with contextlib.suppress(OSError):  # the process has ended, or is a zombie
        for line in pathlib.Path("/proc", str(pid), "maps").read_text(errors="replace").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith("/dev/shm/") and not fields[5].endswith(" (deleted)"):  # noqa: S108 - where shm_open(3) puts its objects
                name = fields[5].rpartition("/")[2]
                if name.startswith("D"):  # DRAGON_MEMORY_DEFAULT_FILE_PREFIX; all that Dragon makes begins with it
                    yield fields[5], int(fields[4])


def launcher_environment(attach_dir: pathlib.Path) -> dict[str, str]:
    """The user's environment, with Dragon's settings but nothing that belongs to another runtime."""
    nested = "DRAGON_MY_PUID" in os.environ  # we run somewhere inside a runtime: all of these describe that one
    foreign = ("DRAGON_ATTACH_TOKEN", "DRAGON_ATTACH_DIR", "DRAGON_RT_UID")
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in foreign and not (nested and key.startswith("DRAGON_"))
    }
    return environment | {"DRAGON_ATTACH_DIR": str(attach_dir)}


class Runtime:
    """The launcher, what it started, and what must be gone afterwards."""

    def __init__(self, owner: int, deadline: float, port: int) -> None:
        """The runtime of the process `owner`, which must be ready `deadline` seconds from now."""
        self.deadline = time.monotonic() + deadline
        self.files: set[tuple[str, int]] = set()
        self.tail = b""
        self.port = port
        self.part = "launcher"
        self.ready = False
        self.home = pathlib.Path(tempfile.mkdtemp(prefix="rhapsody-dragon-"))
        self.fifo = self.home / "stop"
        self.launcher: subprocess.Popen[bytes] | None = None
        self.launcher_fd = -1
        self.owner_fd = os.pidfd_open(owner)
        self.orphan = os.getppid() != owner  # it died before we could watch it

    def start(self) -> None:
        """Start the launcher, in a folder of its own for whatever it may write."""
        os.mkfifo(self.fifo, 0o600)
        head = self.home / "head.py"
        head.write_text(HEAD.format(marker=MARKER.decode(), fifo=str(self.fifo)))
        self.say(starting=self.part)
        # No session of its own: Dragon makes it the leader of a process group, which a session's leader cannot become.
        self.launcher = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, "-s", "-a", "-p", str(self.port), str(head)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.home,
            env=launcher_environment(self.home / "attach"),
        )
        self.launcher_fd = os.pidfd_open(self.launcher.pid)

    def say(self, **message: object) -> None:
        """Tell the user's process, if it is still there to listen."""
        with contextlib.suppress(BrokenPipeError):
            os.write(1, json.dumps(message).encode() + b"\n")

    def survey(self) -> None:
        """Remember the files that this runtime's processes have mapped now."""
        for pid in descendants():
            self.files.update(mapped_files(pid))

    def reap(self) -> None:
        """Collect orphans that came to us when their parents ended."""
        launcher = self.launcher
        for pid in descendants():
            if launcher is None or pid != launcher.pid:
                with contextlib.suppress(ChildProcessError):  # not ours to collect: its parent lives
                    os.waitpid(pid, os.WNOHANG)

    def watch(self) -> str | None:
        """Until this runtime has to end. Returns why it ended by itself, or None when it was asked to."""
        launcher = self.launcher
        assert launcher is not None
        assert launcher.stdout is not None
        output = launcher.stdout.fileno()
        if self.orphan:
            return None
        surveyed = time.monotonic()
        while True:
            wait = SURVEY if self.ready else 0.2
            readable, _, _ = select.select([0, self.owner_fd, output, self.launcher_fd], [], [], wait)
            if 0 in readable or self.owner_fd in readable:
                return None
            if output in readable:
                data = os.read(output, 65536)
                if not data:
                    return self.how_launcher_ended(launcher)
                self.read(data)
            elif self.launcher_fd in readable:  # what it started may still hold its output
                return self.how_launcher_ended(launcher)
            if not self.ready:
                self.advance()
                if time.monotonic() >= self.deadline:
                    return "the deadline has passed"
            if time.monotonic() - surveyed >= SURVEY:
                surveyed = time.monotonic()
                self.survey()
                self.reap()

    @staticmethod
    def how_launcher_ended(launcher: subprocess.Popen[bytes]) -> str:
        """Say so, of one that has closed its output."""
        try:
            return f"Dragon's launcher ended with exit code {launcher.wait(GRACE)}"
        except subprocess.TimeoutExpired:
            return "Dragon's launcher closed its output"

    def advance(self) -> None:
        """Notice which part of the runtime is up, and say what is waited for now."""
        if self.part == "launcher":
            self.survey()
            if self.files:
                self.part = "services"
                self.say(starting=self.part)
        if self.part == "services" and (self.home / "attach" / "attach_info.txt").exists():
            self.part = "head"
            self.say(starting=self.part)

    def read(self, data: bytes) -> None:
        """Take in output of the launcher: the head's line once, afterwards only a tail for explanations."""
        self.tail += data
        if not self.ready:
            before, marker, after = self.tail.partition(MARKER)
            line, newline, rest = after.partition(b"\n")
            if marker and newline:
                self.tail = before + rest  # the token leaves the tail
                self.ready = True
                self.survey()
                self.say(ready=json.loads(line), attach_dir=str(self.home / "attach"), home=str(self.home))
        if self.ready:
            self.tail = self.tail[-TAIL:]

    def end(self) -> dict[str, int]:
        """Leave nothing: in order first, then by force. Idempotent, bounded to about 16 seconds."""
        launcher = self.launcher
        self.survey()
        if launcher is not None and launcher.poll() is None and self.ready:
            # The head waits for the other end of this pipe; without a reader (it has died) opening fails at once.
            with contextlib.suppress(OSError):
                os.close(os.open(self.fifo, os.O_WRONLY | os.O_NONBLOCK))
            patience = time.monotonic() + GRACE
            while launcher.poll() is None and time.monotonic() < patience:
                self.drain(0.02)
                self.survey()
        killed = 0
        patience = time.monotonic() + 10.0
        while time.monotonic() < patience:
            alive = [pid for pid in descendants() if self.kill(pid)]
            if not alive:
                break
            killed = max(killed, len(alive))
            self.drain(0.02)
            self.reap()
            if launcher is not None:
                launcher.poll()
        removed = 0
        for name, inode in self.files:
            # Dragon removed it, or somebody else's runtime has a file of this name now: another inode.
            with contextlib.suppress(OSError):
                if pathlib.Path(name).stat().st_ino == inode:
                    pathlib.Path(name).unlink()
                    removed += 1
        shutil.rmtree(self.home, ignore_errors=True)
        return {"killed": killed, "files": removed}

    @staticmethod
    def kill(pid: int) -> bool:
        """Kill one process; False if it is gone or a zombie, which nobody can kill."""
        try:
            stat = pathlib.Path("/proc", str(pid), "stat").read_text(encoding="utf-8", errors="replace")
            if stat.rpartition(")")[2].split()[0] == "Z":
                return False
            os.kill(pid, signal.SIGKILL)
        except OSError:
            return False
        return True

    def drain(self, seconds: float) -> None:
        """Read what the launcher says meanwhile, so that a full pipe does not hold it up."""
        if self.launcher is None or self.launcher.stdout is None:
            return
        output = self.launcher.stdout.fileno()
        if select.select([output], [], [], seconds)[0] and not self.keep(os.read(output, 65536)):
            time.sleep(seconds)  # closed: readable for ever

    def keep(self, data: bytes) -> bool:
        """Keep the tail of the output; False at its end."""
        self.tail = (self.tail + data)[-TAIL:]
        return bool(data)

    def explanation(self) -> str:
        """The launcher's last words, without the line that holds the token."""
        lines = [line for line in self.tail.decode(errors="replace").splitlines() if MARKER.decode() not in line]
        return "\n".join(lines[-40:]).strip()


class Asked(Exception):
    """SIGTERM or SIGHUP: end in order."""


def asked(*_: object) -> None:
    """Leave whatever is being waited for."""
    raise Asked


def main(configuration: str) -> int:
    """Run one runtime from start to end."""
    settings = json.loads(configuration)
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, asked)
    signal.signal(signal.SIGHUP, asked)
    runtime = Runtime(settings["owner"], settings["deadline"], settings["port"])
    why: str | None = None
    try:
        runtime.start()
        why = runtime.watch()
    except Asked:
        pass
    except OSError as error:
        why = str(error)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        done = runtime.end()
    detail = "\n".join(filter(None, (why, runtime.explanation())))
    if why is None:
        runtime.say(ended=done)
    elif runtime.ready:
        runtime.say(lost=detail)
    else:
        runtime.say(failed=runtime.part, detail=detail)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
