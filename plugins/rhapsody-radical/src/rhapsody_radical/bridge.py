"""The process that holds RADICAL-Pilot's client: its session, its managers and its one pilot.

`python -m rhapsody_radical.bridge CONFIG` reads commands from standard input and writes events to standard output,
one JSON object a line; whatever RADICAL-Pilot prints goes to standard error. Commands are `submit`, `cancel` and
`close`; events are `submitted`, `active`, `tasks` and `lost`.

The process exists because RADICAL-Pilot does to its host what a library must not: it replaces `os.fork`, keeps state
that is one per process, uses the current directory, runs some twenty threads, and may end its process when a pilot
fails.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final
from urllib.parse import urlsplit

EXECUTING: Final = "AGENT_EXECUTING"
FINAL: Final = frozenset({"DONE", "FAILED", "CANCELED"})
CANCEL_WITHIN: Final = 5.0  # seconds for the pilot to end when it is asked to
REPLY_INTERVAL: Final = 10.0  # seconds between two replies to an agent that may have missed its own
_PR_SET_PDEATHSIG: Final = 1
_TAIL: Final = 4096  # bytes of each of the pilot's error files that travel with its failure
_LINES: Final = 12  # of each of them, at most
_ERROR_FILES: Final = ("bootstrap_0.err", "bootstrap_0.out", "agent_0.err")
_NOISE: Final = re.compile(r"\s*$|[#\s-]*$|[-dl][rwxst-]{9}\s|total \d+$")  # rulers, and a listing of the folder


class Closed(Exception):
    """The session asked for the end of the pilot."""


class Bridge:
    """Carries commands to RADICAL-Pilot, and its reports to the session."""

    def __init__(self, config: dict[str, Any], commands: int, events: int) -> None:
        self._config = config
        self._commands = commands
        self._events_fd = events
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._reported: set[str] = set()
        self._executing: set[str] = set()
        self._rp: Any = None  # the module; these are there once the pilot was submitted
        self._tasks: Any = None
        self._pilots: Any = None
        self._pilot: Any = None
        self._pilot_files: Path | None = None

    def run(self) -> None:
        """Start the pilot, serve until the session closes or the pilot ends, and close RADICAL-Pilot's session."""
        writer = threading.Thread(target=self._write_events, name="bridge-events", daemon=True)
        writer.start()
        threading.Thread(target=self._read_commands, name="bridge-commands", daemon=True).start()
        session = None
        try:
            import radical.pilot as rp  # half a second, and only here

            self._check()
            session = rp.Session(uid=self._config["sid"], cfg=self._config["session"])
            self._check()
            self._start(rp, session)
            while not self._closing.wait(REPLY_INTERVAL):
                self._repeat_reply()
        except Closed:
            pass
        except Exception:
            self._send({"event": "lost", "state": "FAILED", "reason": traceback.format_exc(limit=-3)})
            self._closing.wait()
        finally:
            if session is not None:
                self._end_pilot()
                session.close(download=False)
            self._events.put(None)
            writer.join(5)

    def close(self) -> None:
        """End `run`, from any thread or a signal's handler."""
        self._closing.set()

    def _check(self) -> None:
        if self._closing.is_set():
            raise Closed

    def _start(self, rp: Any, session: Any) -> None:
        pilots = rp.PilotManager(session)
        self._check()
        tasks = rp.TaskManager(session)
        self._check()
        tasks.register_callback(self._on_tasks)
        pilot = pilots.submit_pilots(rp.PilotDescription(self._config["pilot"]))
        url = urlsplit(str(pilot.pilot_sandbox))
        if url.scheme in ("", "file"):
            self._pilot_files = Path(url.path)
        tasks.add_pilots(pilot)
        self._rp, self._tasks, self._pilots, self._pilot = rp, tasks, pilots, pilot
        self._send({"event": "submitted", "sandbox": str(self._pilot_files or "")})
        pilot.register_callback(self._on_pilot)
        self._on_pilot(pilot)  # its state may have changed before the callback was registered

    def _repeat_reply(self) -> None:
        """Work around radical.pilot 1.103: the agent may miss the reply to its own `prepare_env` while it starts.

        The agent has one of its threads prepare an environment and waits for the reply without a limit. It sends the
        request on a channel to which it has just subscribed; on a busy machine the subscription takes effect after the
        request, which then is lost (`Agent_0.initialize`, `Component.rpc`). An agent that does not wait ignores the
        reply; one that still prepares the environment starts before it is done.
        """
        if self._pilot.state not in FINAL | {"PMGR_ACTIVE"}:
            answer = self._rp.messages.RPCResultMessage(uid="agent_0.rpc.0000")
            self._pilots.publish(self._rp.constants.CONTROL_PUBSUB, answer)

    def _end_pilot(self) -> None:
        """End the pilot before its session, which otherwise races with its own message to the launcher."""
        pilots, pilot = self._pilots, self._pilot
        if pilot is None:
            return
        if pilot.state == "PMGR_ACTIVE":  # its agent receives messages, and ends its tasks
            pilots.cancel_pilots(pilot.uid, _timeout=CANCEL_WITHIN)
        if pilot.state not in FINAL:  # it waits in a queue, or its agent does not answer
            pilots.kill_pilots(pilot.uid, _timeout=CANCEL_WITHIN)

    def _on_pilot(self, pilots: Any) -> None:
        for pilot in pilots if isinstance(pilots, list) else [pilots]:
            state = pilot.state
            if state == "PMGR_ACTIVE":
                self._send({"event": "active"})
            elif state in FINAL:
                reason = "" if self._closing.is_set() else self._why()
                self._send({"event": "lost", "state": state, "reason": reason})

    def _why(self) -> str:
        """Return the ends of the pilot's own error files."""
        if self._pilot_files is None:
            return ""
        said = []
        for name in _ERROR_FILES:
            try:
                text = (self._pilot_files / name).read_bytes()[-_TAIL:].decode("utf-8", "replace")
            except OSError:  # the pilot did not get that far
                continue
            lines = [line for line in text.splitlines() if not _NOISE.match(line)]
            if lines:
                said.append("\n".join([f"{self._pilot_files / name}:", *lines[-_LINES:]]))
        return "\n".join(said)

    def _on_tasks(self, tasks: Any, state: str | None = None) -> None:
        now = time.time()
        changes: list[list[Any]] = []
        for task in tasks if isinstance(tasks, list) else [tasks]:
            uid, state = task.uid, task.state
            if uid in self._reported:
                continue
            if state in FINAL:
                self._reported.add(uid)
                changes.append([uid, state, _ending(task)])
            elif state == EXECUTING and uid not in self._executing:
                self._executing.add(uid)
                changes.append([uid, state, {"node": _node(task)}])
        if changes:
            self._send({"event": "tasks", "at": now, "tasks": changes})

    def _send(self, event: dict[str, Any]) -> None:
        self._events.put(event)

    def _write_events(self) -> None:
        while (event := self._events.get()) is not None:
            data = json.dumps(event).encode() + b"\n"
            try:
                while data:
                    data = data[os.write(self._events_fd, data) :]
            except OSError:  # the session's process does not read any more
                self.close()
                return
        os.close(self._events_fd)

    def _read_commands(self) -> None:
        for commands in _lines(self._commands):
            submitted: list[dict[str, Any]] = []
            for command in commands:
                if command["command"] == "submit":
                    submitted += command["tasks"]
                    continue
                self._submit(submitted)
                submitted = []
                if command["command"] == "cancel":
                    self._cancel(command["uids"])
                else:
                    self.close()
            self._submit(submitted)
        self.close()

    def _submit(self, descriptions: list[dict[str, Any]]) -> None:
        if not descriptions:
            return
        good = []
        for fields in descriptions:
            try:
                description = self._rp.TaskDescription(fields)
                description.verify()
            except Exception as error:
                self._refuse([fields["uid"]], f"RADICAL-Pilot refused the description: {error}")
            else:
                good.append(description)
        try:
            self._tasks.submit_tasks(good)
        except Exception as error:
            self._refuse([description["uid"] for description in good], f"RADICAL-Pilot refused the tasks: {error!r}")

    def _refuse(self, uids: Iterable[str], reason: str) -> None:
        ending = {"exception": reason}
        self._send({"event": "tasks", "at": time.time(), "tasks": [[uid, "FAILED", ending] for uid in uids]})

    def _cancel(self, uids: list[str]) -> None:
        self._tasks.cancel_tasks(uids)


def _ending(task: Any) -> dict[str, Any]:
    ending = {
        "exit_code": task.exit_code,
        "node": _node(task),
        "sandbox": str(task.sandbox or ""),
        "stdout": task.stdout or "",
        "stderr": task.stderr or "",
    }
    if task.state != "DONE":
        ending["exception"] = str(task.exception or "")
        ending["detail"] = str(task.exception_detail or "")
    return ending


def _node(task: Any) -> str:
    try:
        return str(task.slots[0]["node_name"])
    except (TypeError, LookupError):  # it was never placed
        return ""


def _lines(fd: int) -> Iterator[list[dict[str, Any]]]:
    """Yield what arrives, all the complete lines of it at once, until the other end closes."""
    rest = b""
    while data := os.read(fd, 1 << 20):
        *lines, rest = (rest + data).split(b"\n")
        if lines:
            yield [json.loads(line) for line in lines]


def main() -> None:
    """Run one bridge on this process's standard input and output."""
    config = json.loads(Path(sys.argv[1]).read_text())
    commands, events = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)  # what RADICAL-Pilot prints goes to the log
    bridge = Bridge(config, commands, events)

    def end(signum: int, frame: FrameType | None) -> None:
        bridge.close()

    signal.signal(signal.SIGTERM, end)
    if sys.platform.startswith("linux"):  # should the keeper die, close in good order
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    signal.signal(signal.SIGINT, end)  # a handler, not SIG_IGN, which the tasks would inherit
    bridge.run()
    sys.stderr.flush()
    os._exit(0)  # threads of RADICAL-Pilot must not keep the process


if __name__ == "__main__":
    main()
