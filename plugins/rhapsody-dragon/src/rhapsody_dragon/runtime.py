"""The Dragon runtime that this process uses: found, attached to, or started; shared by its sessions; ended.

A process can be connected to one Dragon runtime at a time, so all sessions of a process share one. The first backend
that needs it acquires it, the last one that is done with it ends it:

- inside the launcher (`dragon script.py`) it is the launcher's, on however many nodes, and is left alone afterwards;
- with DRAGON_ATTACH_TOKEN in the environment (and DRAGON_ATTACH_DIR, where the runtime has it) it is the running one
  that the token opens: this process attaches, and detaches at the end;
- otherwise a runtime of one node is started under a watchdog (`watchdog.py`) and attached to.

Nothing of the runtime's own output reaches this process's standard output or error: the launcher writes into a pipe
that ends in the watchdog, and the token stays between the watchdog and this module.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

from rhapsody.errors import BackendLostError, BackendStartError

from .disconnect import detach, let_go
from .launch import Watchdog
from .local import wait_for_end
from .parts import PARTS, start_error

Kind = Literal["launcher", "attached", "own"]
Report = Callable[[str], None]

#: Seconds in which a runtime must be up and attached to (measured: 3.5 on two cores, over 40 on a crowded machine).
START_DEADLINE: Final = 100.0
#: Seconds for the services of a runtime to start a program that says who they are.
SERVICES_DEADLINE: Final = 5.0
#: Seconds between two looks at whether a runtime that is watched is still used.
LOOK_SECONDS: Final = 1.0

_lock = threading.Lock()
_current: DragonRuntime | None = None


class DragonRuntime:
    """A runtime that this process is connected to; made by `acquire`."""

    def __init__(self, kind: Kind) -> None:
        self.kind: Final = kind
        self.users = 1
        self.pid = os.getpid()
        self.lost: BackendLostError | None = None
        self.home: str | None = None  # a folder that its watchdog removes; None if the runtime is not ours
        self._watchdog: Watchdog | None = None
        self._released = threading.Event()
        self._handle: Any = None
        self._listeners: list[Callable[[BackendLostError], None]] = []
        self._listeners_lock = threading.Lock()

    def on_lost(self, listener: Callable[[BackendLostError], None]) -> Callable[[], None]:
        """Call `listener`, from another thread, if the runtime ends before it is released; returns how to forget it."""
        with self._listeners_lock:
            if self.lost is None:
                self._listeners.append(listener)
        if self.lost is not None:
            listener(self.lost)

        def forget() -> None:
            with self._listeners_lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return forget

    def _lose(self, detail: str) -> None:
        with self._listeners_lock:
            self.lost = BackendLostError(f"the Dragon runtime ended by itself: {detail}")
            listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener(self.lost)

    def _start(self, deadline: float, report: Report, give_up: threading.Event) -> None:
        until = time.monotonic() + deadline
        self._watchdog = Watchdog(deadline=max(1.0, deadline - 2.0))
        ready = self._watchdog.wait_until_ready(until, report, give_up)
        info, attach_dir, self.home = ready["ready"], ready["attach_dir"], ready["home"]
        report(PARTS["attach"].waits_for)
        before = os.environ.get("DRAGON_ATTACH_DIR")
        os.environ["DRAGON_ATTACH_DIR"] = attach_dir
        try:
            self._attach(max(2.0, until - time.monotonic()), info["auth_token"])
        except BackendStartError:
            self._watchdog.end()
            raise
        finally:
            _restore("DRAGON_ATTACH_DIR", before)
        self._watchdog.watch(self._lose)

    def _attach(self, timeout: float, token: str | None) -> None:
        from dragon.workflows.runtime import attach

        try:
            self._handle = attach(timeout=timeout, auth_token=token)
        except Exception as error:
            raise start_error("attach", f"{type(error).__name__}: {error}") from error

    def _watch_services(self) -> None:
        """Tell when a runtime that is not ours ends; nothing else would, and Dragon's requests would wait for good."""
        pid = _services_here()
        thread = threading.Thread(target=self._wait_for_services, args=(pid,), name="rhapsody-dragon-services")
        thread.daemon = True
        thread.start()

    def _wait_for_services(self, pid: int) -> None:
        while not self._released.is_set():
            if wait_for_end(pid, LOOK_SECONDS):
                if not self._released.is_set():
                    self._lose("its services on this node are gone")
                return

    def _end(self) -> None:
        """Disconnect, and end the runtime if it is ours. Bounded; raises nothing, since nobody could do more."""
        self._released.set()
        if self._handle is not None:
            before = os.environ.get("DRAGON_ATTACH_DIR")
            if self.lost is not None or not detach(self._handle):
                let_go(self._handle)
            self._handle = None
            if self._watchdog is not None:
                os.environ.pop("DRAGON_ATTACH_DIR", None)
                _restore("DRAGON_ATTACH_DIR", before)
        if self._watchdog is not None:
            self._watchdog.end()


def acquire(report: Report, give_up: threading.Event | None = None, deadline: float = START_DEADLINE) -> DragonRuntime:
    """Connect this process to a runtime, or share the one that it is connected to.

    Blocks for as long as that takes, or until `give_up` is set; call it from a thread. `report` is told what is
    waited for.

    Raises:
        BackendStartError: it did not start or did not let us in, naming the part and the remedy. Nothing is held.
    """
    global _current
    with _lock:
        current = _current
        if current is not None and current.pid == os.getpid():
            if current.lost is None:
                current.users += 1
                return current
            current._end()
        _current = None
        runtime = DragonRuntime(_kind())
        if runtime.kind == "own":
            runtime._start(deadline, report, give_up or threading.Event())
        elif runtime.kind == "attached":
            report(PARTS["attach"].waits_for)
            runtime._attach(deadline, None)
            try:
                runtime._watch_services()
            except BackendStartError:
                runtime._end()
                raise
        _current = runtime
        return runtime


def release(runtime: DragonRuntime) -> None:
    """Give the runtime back; the last one to do so ends it. Blocks until nothing of it is left."""
    global _current
    with _lock:
        runtime.users -= 1
        if runtime.users > 0:
            return
        if _current is runtime:
            _current = None
        if runtime.pid == os.getpid():
            runtime._end()


def _services_here() -> int:
    """The pid of Dragon's services on this node: the parent of what they start, which no request of Dragon's tells.

    Raises:
        BackendStartError: they do not start anything.
    """
    from dragon.infrastructure.policy import Policy
    from dragon.native.machine import current
    from dragon.native.process import Process

    with tempfile.TemporaryDirectory(prefix="rhapsody-dragon-") as folder:
        answer = Path(folder, "parent")
        try:
            process = Process(
                target="/bin/sh",
                args=["-c", 'echo $PPID >"$0"', str(answer)],
                cwd=folder,
                stdout=Process.DEVNULL,
                stderr=Process.DEVNULL,
                policy=Policy(placement=Policy.Placement.HOST_NAME, host_name=current().hostname),
            )
            process.start()
            process.join(timeout=SERVICES_DEADLINE)
            return int(answer.read_text())
        except Exception as error:
            raise start_error("services", f"{type(error).__name__}: {error}") from error


def _kind() -> Kind:
    if "DRAGON_MY_PUID" in os.environ:
        import dragon

        if dragon.in_dragon():
            return "launcher"
    return "attached" if os.environ.get("DRAGON_ATTACH_TOKEN") else "own"


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
