"""A login node and compute nodes on this machine: namespaces with sshd and Slurm. It needs root.

All nodes are inside the *room*, a process with a PID namespace of its own: whatever ends it, or the process that
started it, ends everything in it, and with that go its networks and mounts. A node has its own network, mounts,
processes, host name, shared memory and `/tmp`; the folder of the cluster is on all, as a shared file system is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psutil

PROJECT: Final = Path(__file__).resolve().parents[2]
TEMPLATES: Final = Path(__file__).with_name("etc")
NODE: Final = Path(__file__).with_name("node.sh")
CORES: Final = 4  # that a node of Slurm says it has
LOGIN: Final = "login"
_NET: Final = "10.88.0"
_TRIES: Final = 3
_HANG: Final = 30.0  # seconds that a node has to start
_ROOM: Final = """ip link set lo up && ip link add br0 type bridge && ip link set br0 up || exit 1
mount --bind "$1/hosts" /etc/hosts && mount --bind "$1/ssh_config" /etc/ssh/ssh_config || exit 1
touch "$1/ready"; exec sleep infinity
"""
Answer = subprocess.CompletedProcess[str]


class Cluster:
    """A login node and compute nodes `node1`, `node2`, ...

    Args:
        nodes: how many compute nodes there are.

    Attributes:
        folder: that all nodes share; their home folder is in it.
    """

    def __init__(self, nodes: int = 2) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rhapsody-cluster-", dir="/var/tmp"))
        self.home = self.folder / "home"
        self.compute = [f"node{number}" for number in range(1, nodes + 1)]
        self._addresses = {LOGIN: f"{_NET}.1"} | {f"node{n}": f"{_NET}.{10 + n}" for n in range(1, nodes + 1)}
        self._room: subprocess.Popen[bytes] | None = None
        self._inits: dict[str, int] = {}  # the process 1 of each, by its number out here
        self._started: list[subprocess.Popen[bytes]] = []
        self._path = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

    def start(self) -> Cluster:
        """Start all nodes, again if they do not come up; returns itself."""
        for attempt in range(1, _TRIES + 1):
            try:
                self._start()
                return self
            except (RuntimeError, subprocess.SubprocessError, psutil.Error) as error:
                logs = [f"{log.name}: {log.read_text(errors='replace')[-800:]}" for log in self.folder.glob("log/*")]
                self.end()
                if attempt == _TRIES:
                    raise RuntimeError(f"no cluster after {attempt} tries: {error}\n" + "\n".join(logs)) from error
        raise AssertionError

    def _start(self) -> None:
        self._configure()
        own = ["--mount", "--propagation", "private", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", *own, "bash", "-c", _ROOM, "room", f"{self._etc}"]
        self._room = self._spawn(command, "room")
        self._wait((self._etc / "ready").exists, "the room")
        for node in self._addresses:
            self._boot(node)
        for node in self._addresses:
            self._wait((self.folder / f"{node}.ready").exists, node)
        self._wait(lambda: self.idle() == len(self.compute), "idle nodes of Slurm")

    def _configure(self) -> None:
        for folder in ("home", "log", "etc"):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        self._etc = self.folder / "etc"
        self.folder.chmod(0o755)
        words = {"etc": self._etc, "home": self.home, "path": self._path, "log": self.folder / "log", "cores": CORES}
        words["nodes"] = "\n".join(f"NodeName={node} NodeAddr={self._addresses[node]}" for node in self.compute)
        for file in TEMPLATES.iterdir():
            (self._etc / file.name).write_text(file.read_text().format(**words))
        (self._etc / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        names = "".join(f"{address} {node}\n" for node, address in self._addresses.items())
        (self._etc / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        for key in ("host", "id"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{self._etc / key}"], check=True)
        (self._etc / "munge.key").write_bytes(os.urandom(128))
        (self._etc / "munge.key").chmod(0o400)

    def _boot(self, node: str) -> None:
        assert self._room is not None
        (self.folder / f"{node}.ready").unlink(missing_ok=True)
        room = psutil.Process(self._room.pid).children()[0].pid
        keep = [str(self.folder), str(PROJECT), sys.base_prefix]
        own = ["--mount", "--propagation", "private", "--net", "--uts", "--ipc", "--pid", "--fork", "--mount-proc"]
        command = ["nsenter", "-t", f"{room}", "-m", "-n", "-p", "unshare", *own, "bash", str(NODE)]
        started = self._spawn([*command, node, self._addresses[node], str(self.folder), *dict.fromkeys(keep)], node)
        self._wait(lambda: len(psutil.Process(started.pid).children(recursive=True)) >= 2, f"the processes of {node}")
        init = psutil.Process(started.pid).children()[0].children()[0].pid
        wire = f"ip link add v{node} type veth peer name eth0 netns {init} && ip link set v{node} master br0 up"
        subprocess.run(["nsenter", "-t", f"{room}", "-n", "sh", "-c", wire], check=True, timeout=_HANG)
        self._inits[node] = init

    def _spawn(self, command: list[str], name: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log" / f"{name}.log").open("ab") as log:
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self._started.append(subprocess.Popen(command, env=self._environment(), **streams))
        return self._started[-1]

    def _environment(self) -> dict[str, str]:
        root = {"USER": "root", "LOGNAME": "root", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        plain = {"LANG": "C.UTF-8", "TERM": "dumb", "SHELL": "/bin/bash"}
        return {"HOME": str(self.home), "PATH": self._path, "SLURM_CONF": f"{self._etc}/slurm.conf"} | root | plain

    def _wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + _HANG
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(f"not there after {_HANG:g} seconds: {what}")
            time.sleep(0.02)

    def idle(self) -> int:
        """Return how many nodes Slurm would give a job."""
        answer = self.run(LOGIN, "sinfo", "--noheader", "--format=%D", "--states=idle", check=False).stdout
        return sum(map(int, answer.split()))

    def popen(self, node: str, *command: str, **keywords: Any) -> subprocess.Popen[str]:
        """Start a command on a node, in the home folder."""
        enter = ["nsenter", "-t", f"{self._inits[node]}", "-m", "-u", "-i", "-n", "-p", f"--wd={self.home}"]
        keywords = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True} | keywords
        return subprocess.Popen([*enter, *command], env=self._environment(), **keywords)

    def run(self, node: str, *command: str, check: bool = True, timeout: float = 120) -> Answer:
        """Run a command on a node to its end."""
        with self.popen(node, *command, stderr=subprocess.PIPE) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert not check or process.returncode == 0, f"{command} on {node}: {process.returncode}\n{out}\n{err}"
        return Answer(command, process.returncode, out, err)

    def power_off(self, node: str) -> None:
        """End a node as a power failure does: nobody gets a FIN or an RST."""
        self._wire(f"ip link del v{node}")
        subprocess.run(["kill", "-KILL", f"{self._inits.pop(node)}"], check=True)

    def boot(self, node: str) -> None:
        """Start a node again that was powered off, and wait until Slurm gives it to jobs."""
        self._boot(node)
        self._wait((self.folder / f"{node}.ready").exists, node)
        self.run(LOGIN, "scontrol", "update", f"nodename={node}", "state=resume", check=False)
        self._wait(lambda: self.idle() == len(self.compute), "idle nodes of Slurm")

    def cut(self, node: str) -> None:
        """Take the network from a node."""
        self._wire(f"ip link set v{node} down")

    def mend(self, node: str) -> None:
        """Give it back."""
        self._wire(f"ip link set v{node} up")

    def restore(self) -> None:
        """Start those nodes again that were powered off, and mend those that were cut."""
        for node in self.compute:
            if node not in self._inits:
                self.boot(node)
            self.mend(node)

    def _wire(self, command: str) -> None:
        assert self._room is not None
        room = psutil.Process(self._room.pid).children()[0].pid
        subprocess.run(["nsenter", "-t", f"{room}", "-n", *command.split()], check=True, timeout=_HANG)

    def processes(self, node: str, words: str = "") -> list[str]:
        """Return the command lines of a node's processes that have these words; of all without."""
        return [line for line in self.run(node, "ps", "-eo", "pid=,args=").stdout.splitlines() if words in line]

    def end(self) -> None:
        """End every process of every node, and remove the folder."""
        room, self._room = self._room, None
        if room is not None:
            room.kill()
        for process in self._started:
            process.wait()
        self._started.clear()
        self._inits.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
