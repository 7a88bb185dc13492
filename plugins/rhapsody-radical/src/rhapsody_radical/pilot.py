"""The session's end of the process that holds the pilot: starts it, sends commands, reads events, ends it."""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import re
import select
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
from rhapsody.errors import BackendStartError

from . import catalogue
from .description import escape
from .resources import PilotRequest

CLOSE_WITHIN: Final = 22.0  # seconds that RADICAL-Pilot has to close in good order, before it is killed
KILL_WITHIN: Final = 5.0  # seconds that the keeper has to kill everything
_POLL_INTERVAL: Final = 0.05  # seconds between two reads of what running batches have written
_PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9_./:@+,=-]+")
_LAUNCHERS: Final = ("FORK", "MPIEXEC", "MPIRUN")
_AGENT: Final = "radical-pilot-agent_0"
_FORKING: Final = str(Path(__file__).with_name("forking"))  # has a sitecustomize
NEEDS_FORK: Final = sys.version_info >= (3, 14)  # where fork is no start method unless it is set (radical.pilot 1.103)
_NO_NETIFACES: Final = (
    "RADICAL-Pilot needs the module netifaces, which is not here: pip install netifaces2 brings it as a wheel, "
    "pip install netifaces builds it (a C compiler, and python3-dev)"
)


@attrs.frozen(kw_only=True)
class Listener:
    """Callbacks of a PilotProcess, called on its own thread.

    Attributes:
        event: takes each event of the bridge.
        poll: called after each event, and at intervals for as long as it returns True.
        gone: called last, once, when the process has ended, on request or not.
    """

    event: Callable[[Mapping[str, Any]], None]
    poll: Callable[[], bool]
    gone: Callable[[], None]


class PilotProcess:
    """RADICAL-Pilot's client and its one pilot, in processes of their own.

    Args:
        request: the pilot.
        folder: holds all files of the pilot.
        sid: a name for RADICAL-Pilot's session that no other session on this machine has.
        listener: receives events.
    """

    def __init__(self, request: PilotRequest, folder: Path, sid: str, listener: Listener) -> None:
        self._request = request
        self._folder = folder
        self._sid = sid
        self._listener = listener
        self._keeper: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self._commands: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False

    @property
    def log(self) -> Path:
        """What RADICAL-Pilot's client prints."""
        return self._folder / "client.log"

    def start(self) -> None:
        """Start the processes; the pilot is up when the listener gets the event `active`. Blocks for some milliseconds.

        Raises:
            BackendStartError: RADICAL-Pilot cannot work here.
        """
        with self._lock:
            if not self._closed:
                self._start()

    def _start(self) -> None:
        scripts = _scripts()
        if importlib.util.find_spec("netifaces") is None:
            raise BackendStartError(_NO_NETIFACES)
        folder = str(self._folder)
        if not _PLAIN_PATH.fullmatch(folder):
            raise BackendStartError(
                f"RADICAL-Pilot cannot work in {folder!r}: its shell scripts take no spaces or special characters; "
                "choose another folder with Session(work_dir=...) or RHAPSODY_WORK_DIR"
            )
        self._write_configuration(scripts)
        environment = client_environment(os.environ, self._folder, scripts)
        keeper = [sys.executable, "-m", "rhapsody_radical.keeper", str(os.getpid())]
        client = [sys.executable, "-m", "rhapsody_radical.bridge", str(self._folder / "bridge.json")]
        reader, self._lifeline = os.pipe()
        try:
            with self.log.open("ab") as log:
                self._keeper = subprocess.Popen(
                    [*keeper, str(reader), self._sid, "--", *client],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd=self._folder,
                    env=environment,
                    pass_fds=(reader,),
                    start_new_session=True,  # the terminal's Ctrl-C does not reach it
                )
        finally:
            os.close(reader)
        for target in (self._write_commands, self._read_events):
            thread = threading.Thread(target=target, name=f"rhapsody-radical-{target.__name__[1:]}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def submit(self, descriptions: Sequence[Mapping[str, Any]]) -> None:
        """Give tasks to the pilot, as one bulk. Does not block."""
        self._command({"command": "submit", "tasks": descriptions})

    def cancel(self, uids: Iterable[str]) -> None:
        """Ask for tasks to be stopped. Does not block."""
        self._command({"command": "cancel", "uids": list(uids)})

    def close(self) -> None:
        """Cancel the pilot, close RADICAL-Pilot's session, and end every process. Blocks; idempotent.

        Raises:
            RuntimeError: something of it is still alive.
        """
        with self._lock:
            self._closed = True
            keeper = self._keeper
            if keeper is None:
                return
            self._command({"command": "close"})
            self._commands.put(None)
            try:
                keeper.wait(CLOSE_WITHIN)
            except subprocess.TimeoutExpired:
                os.write(self._lifeline, b"!")
                try:
                    keeper.wait(KILL_WITHIN)
                except subprocess.TimeoutExpired as error:
                    raise RuntimeError(f"processes of RADICAL-Pilot are left below process {keeper.pid}") from error
            self._keeper = None
            for thread in self._threads:
                thread.join(KILL_WITHIN)  # at once, unless the keeper was killed and another process holds its pipes
            assert keeper.stdin is not None
            assert keeper.stdout is not None
            keeper.stdin.close()
            keeper.stdout.close()
            os.close(self._lifeline)

    def said(self) -> str:
        """Return the end of what RADICAL-Pilot's client printed."""
        try:
            return self.log.read_bytes()[-4096:].decode("utf-8", "replace").strip()
        except FileNotFoundError:
            return ""

    def _write_configuration(self, scripts: Path) -> None:
        folder = self._folder
        client = folder / "client"
        client.mkdir(parents=True, exist_ok=True)
        description = dict(self._request.description)
        if self._request.shared_files:
            description.setdefault("sandbox", str(folder))
        configuration = {
            "sid": self._sid,
            "session": {"base": str(folder), "path": str(client)},
            "pilot": description,
        }
        (folder / "bridge.json").write_text(json.dumps(configuration))
        if self._request.local:
            write_machine(self._request, folder, scripts, os.environ)

    def _command(self, command: Mapping[str, Any]) -> None:
        # Encoded here, so that a value that JSON cannot hold raises in the caller, and not in the writing thread.
        self._commands.put(json.dumps(command).encode() + b"\n")

    def _write_commands(self) -> None:
        assert self._keeper is not None
        assert self._keeper.stdin is not None
        pipe = self._keeper.stdin.fileno()
        try:
            while (data := self._commands.get()) is not None:
                while data:
                    data = data[os.write(pipe, data) :]
        except BrokenPipeError:  # it ended, and the thread that reads events reports it
            return

    def _read_events(self) -> None:
        assert self._keeper is not None
        assert self._keeper.stdout is not None
        pipe = self._keeper.stdout.fileno()
        listener = self._listener
        rest = b""
        try:
            while True:
                while listener.poll() and not select.select([pipe], [], [], _POLL_INTERVAL)[0]:
                    pass
                data = os.read(pipe, 1 << 20)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    listener.event(json.loads(line))
        finally:
            listener.gone()


def client_environment(environment: Mapping[str, str], folder: Path, scripts: Path) -> dict[str, str]:
    """Return the environment for RADICAL-Pilot's client: that of an activated virtual environment, with its folders."""
    changed = dict(environment)
    changed["PATH"] = _path(scripts, environment)
    if sys.prefix != sys.base_prefix:
        changed["VIRTUAL_ENV"] = sys.prefix
    changed["RADICAL_BASE"] = str(folder)
    changed["RADICAL_PILOT_BULK_CB"] = "1"
    for setting in ("REPORT", "PROFILE"):  # its progress display, and a trace of every step of every task
        changed.setdefault(f"RADICAL_DEFAULT_{setting}", "FALSE")
    if NEEDS_FORK:
        changed["PYTHONPATH"] = os.pathsep.join(filter(None, [_FORKING, environment.get("PYTHONPATH")]))
    if (folder / "config").exists():
        changed["RADICAL_CONFIG_USER_DIR"] = str(folder / "config")
    return changed


def write_machine(request: PilotRequest, folder: Path, scripts: Path, environment: Mapping[str, str]) -> None:
    """Describe this machine as it is.

    RADICAL-Pilot assumes nodes of 8 cores, one GPU and 4 GB on every local machine, and allocates whole nodes: a pilot
    of two cores would run eight tasks at once. The user's own configuration files stay in effect.
    """
    site, _, host = request.description["resource"].partition(".")
    target = catalogue.user_folder({"RADICAL_CONFIG_USER_DIR": str(folder / "config")})
    target.mkdir(parents=True, exist_ok=True)
    source = catalogue.user_folder(environment)
    for path in source.glob("*.json") if source.is_dir() else ():
        shutil.copyfile(path, target / path.name)
    path = target / f"resource_{site}.json"
    machines = catalogue.read(path) if path.exists() else {}
    machine = machines.setdefault(host, {})
    mine = [  # the pilot's login shell, and RADICAL-Pilot, have set others
        f'export PATH="{escape(_path(scripts, environment))}"',
        f'export PYTHONPATH="{escape(environment.get("PYTHONPATH", ""))}"',
    ]
    machine["pre_bootstrap_0"] = [mine[0], *machine.get("pre_bootstrap_0", [])]
    if NEEDS_FORK:  # a file, since the launcher's shell expands this text before PYTHONPATH has its final value
        script = target / "fork.sh"
        script.write_text(f'export PYTHONPATH="{escape(_FORKING)}${{PYTHONPATH:+:$PYTHONPATH}}"\n')
        machine["pre_bootstrap_0"].append(f". {script}")
    for name in _LAUNCHERS:
        launcher = machine.setdefault("launch_methods", {}).setdefault(name, {})
        launcher["pre_exec_cached"] = [*mine, *launcher.get("pre_exec_cached", [])]
    if "cores" in request.description:
        machine["cores_per_node"] = request.description["cores"]
        machine["gpus_per_node"] = request.description.get("gpus", 0)
        machine["mem_per_node"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20  # MB
    path.write_text(json.dumps(machines))


def _path(scripts: Path, environment: Mapping[str, str]) -> str:
    return os.pathsep.join([str(scripts), environment.get("PATH", os.defpath)])


def _scripts() -> Path:
    """Return the folder of RADICAL-Pilot's own scripts."""
    for folder in (Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))):
        if (folder / _AGENT).exists():
            return folder
    if found := shutil.which(_AGENT):
        return Path(found).parent
    raise BackendStartError(
        f"RADICAL-Pilot's scripts are not beside {sys.executable}: pip install --force-reinstall radical.pilot"
    )
