"""The Dragon runtime that this process uses: found, attached to, or started; shared by its sessions; ended.

A process can be connected to one Dragon runtime at a time, so all sessions of a process share one. The first backend
that needs it acquires it, the last one that is done with it ends it:

- inside the launcher (`dragon script.py`) it is the launcher's, on however many nodes, and is left alone afterwards;
- with DRAGON_ATTACH_TOKEN in the environment (and DRAGON_ATTACH_DIR, where the runtime has it) it is the running one
  that the token opens: this process attaches, and detaches at the end;
- otherwise a runtime of one node is started under a guard process (`guard.py`) and attached to.

Nothing of the runtime's own output reaches this process's standard output or error: the launcher writes into a pipe
that ends in the guard, and the token stays between the guard and this module.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from rhapsody.errors import BackendLostError, BackendStartError

from .exit_watch import services_here, wait_for_end
from .guard import GuardedRuntime, start_guarded
from .startup_checks import PARTS, check_installed, check_machine, start_error

Kind = Literal["launcher", "attached", "own"]
Report = Callable[[str], None]

#: Seconds in which a runtime must be up and attached to (measured: 3.5 on two cores, over 40 on a crowded machine).
START_DEADLINE: Final = 100.0
#: Variables by which Dragon knows a process: its number, and the queues from which it reads answers. Dragon puts them
#: into the environment when it attaches, reads them again later, and gives the processes that it starts their own.
IDENTITY: Final = ("DRAGON_MY_PUID", "DRAGON_GS_RET_QD", "DRAGON_LS_RET_QD")
#: Says of which process they are. A program that inherits them would take itself for that one, and its answers.
OWNER: Final = "RHAPSODY_DRAGON_OWNER"
#: Seconds between two checks of whether a runtime that is watched is still used.
CHECK_SECONDS: Final = 1.0
#: Seconds for a request that may never be answered.
ANSWER_DEADLINE: Final = 5.0
#: Seconds for a thread that waits for an answer to leave, once there is something to read.
_LEAVE_SECONDS: Final = 1.0
#: Seconds for one that is woken to find that there is nothing to read.
_TURN_SECONDS: Final = 0.005
#: Where Dragon keeps the queues to and from its services.
_ANSWERS: Final = "_GS_RETURN"  # the one that is read
_QUEUES: Final = ("_GS_INPUT", _ANSWERS, "_LS_INPUT", "_LS_RETURN")
_POOL: Final = "_EXTERNAL_DEFAULT_POOL"

_lock = threading.Lock()
_current: DragonRuntime | None = None
_left: Final[list[_Connection]] = []  # connections in which a thread waits for good, kept from being collected


class DragonRuntime:
    """A runtime that this process is connected to; made by `acquire`."""

    def __init__(self, kind: Kind) -> None:
        self.kind: Final = kind
        self.users = 1
        self.samples = os.environ.get("DRAGON_TELEMETRY_LEVEL", "0") != "0"  # Dragon's telemetry is on
        self.pid = os.getpid()
        self.lost: BackendLostError | None = None
        self.home: str | None = None  # a folder that its guard removes; None if the runtime is not ours
        self._guard: GuardedRuntime | None = None
        self._released = threading.Event()
        self._handle: Any = None
        self._listeners: list[Callable[[BackendLostError], None]] = []
        self._lock = threading.Lock()

    def on_lost(self, listener: Callable[[BackendLostError], None]) -> None:
        """Call `listener`, from another thread, if the runtime ends before it is released."""
        with self._lock:
            if self.lost is None:
                self._listeners.append(listener)
                return
        listener(self.lost)

    def forget(self, listener: Callable[[BackendLostError], None]) -> None:
        """Call it no more."""
        with self._lock:
            self._listeners = [one for one in self._listeners if one != listener]

    def _lose(self, detail: str) -> None:
        with self._lock:
            self.lost = BackendLostError(f"the Dragon runtime ended by itself: {detail}")
            listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener(self.lost)

    def _start(self, deadline: float, report: Report, give_up: threading.Event, telemetry: bool) -> None:
        check_machine()
        until = time.monotonic() + deadline
        self.samples = self.samples and telemetry
        self._guard, ready = start_guarded(until, report, give_up, telemetry)
        info, attach_dir, self.home = ready["ready"], ready["attach_dir"], ready["home"]
        report(PARTS["attach"].waits_for)
        try:
            with _attach_dir_kept():
                os.environ["DRAGON_ATTACH_DIR"] = attach_dir
                self._attach(max(2.0, until - time.monotonic()), info["auth_token"])
        except BackendStartError:
            self._guard.end()
            raise
        self._guard.watch(self._lose)

    def _attach(self, timeout: float, token: str | None) -> None:
        from dragon.workflows.runtime import attach

        try:
            self._handle = attach(timeout=timeout, auth_token=token)
        except Exception as error:
            raise start_error("attach", f"{type(error).__name__}: {error}") from error
        os.environ[OWNER] = f"{os.getpid()} {os.environ.get(IDENTITY[0], '')}"

    def _watch_services(self) -> None:
        """Notice when a runtime that is not ours ends; otherwise Dragon's requests would wait for good."""
        pid = services_here()

        def wait() -> None:
            while not self._released.is_set():
                if wait_for_end(pid, CHECK_SECONDS):
                    if not self._released.is_set():
                        self._lose("its services on this node are gone")
                    return

        threading.Thread(target=wait, name="rhapsody-dragon-services", daemon=True).start()

    def _end(self) -> None:
        """Disconnect, and end the runtime if it is ours. Bounded; raises nothing, since nobody could do more."""
        self._released.set()
        if self._handle is not None:
            with _attach_dir_kept() if self._guard is not None else contextlib.nullcontext():
                if self.lost is not None or not _in_time(self._handle.detach):
                    let_go(self._handle)
            self._handle = None
            os.environ.pop(OWNER, None)
        if self._guard is not None:
            self._guard.end()


def acquire(
    report: Report,
    give_up: threading.Event | None = None,
    deadline: float = START_DEADLINE,
    *,
    telemetry: bool = True,
) -> DragonRuntime:
    """Connect this process to a runtime, or share the one that it is connected to.

    Blocks for as long as that takes, or until `give_up` is set; call it from a thread. `report` is called with what is
    waited for. Without `telemetry` a runtime that is started here does not sample.

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
        check_installed()
        _leave_inherited()
        runtime = DragonRuntime(_kind())
        if runtime.kind == "own":
            runtime._start(deadline, report, give_up or threading.Event(), telemetry)
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


def _leave_inherited() -> None:
    """Forget the identity of the program that started this one, or that this one was forked from."""
    pid, _, puid = os.environ.pop(OWNER, "").partition(" ")
    if puid and puid == os.environ.get(IDENTITY[0]) and pid != str(os.getpid()):
        for name in IDENTITY:
            os.environ.pop(name, None)


def _kind() -> Kind:
    if "DRAGON_MY_PUID" in os.environ:
        import dragon

        if dragon.in_dragon():
            return "launcher"
    return "attached" if os.environ.get("DRAGON_ATTACH_TOKEN") else "own"


@contextlib.contextmanager
def _attach_dir_kept() -> Iterator[None]:
    before = os.environ.get("DRAGON_ATTACH_DIR")
    try:
        yield
    finally:
        os.environ.pop("DRAGON_ATTACH_DIR", None)
        if before is not None:
            os.environ["DRAGON_ATTACH_DIR"] = before


# -- letting go of a runtime that is gone, or does not answer --------------------------------------------------------
#
# A request to such a runtime is never answered, and raises nothing: its thread stays inside of a queue, in memory of
# the runtime's. Dragon's own way to disconnect closes that queue, which crashes the whole process (Dragon 0.15). So the
# connection is first put aside, for the next runtime to find none, and closed once nobody is inside of it any more.
# This reaches into what Dragon keeps for itself.


class _Connection(NamedTuple):
    queues: Mapping[str, Any]
    pool: Any
    locks: Sequence[Any]  # one is held by who sends, one by who reads
    waiting: Sequence[threading.Event]  # of those who wait for their turn to read


def let_go(handle: Any) -> None:
    """Disconnect from a runtime that is gone, or does not answer; whoever waits for its answers gets an error.

    Raises nothing, since nobody could do more.
    """
    from dragon.globalservices import api_setup
    from dragon.workflows import runtime

    with contextlib.suppress(Exception):  # a detach that comes late may be at the same
        handle._attached = False
        handle._restore_pre_attach_process_state()
    connection = _put_aside(api_setup)
    if not _in_time(lambda: _close(connection)):
        _left.append(connection)
        api_setup._GS_SEND_LOCK, api_setup._GS_RECV_LOCK = threading.RLock(), threading.RLock()
        _wake(connection.waiting)
    runtime._lock = threading.Lock()  # a detach may hold it, for good
    gc.enable()  # which Dragon keeps off while somebody waits


def _put_aside(api_setup: Any) -> _Connection:
    """Let a request from now on find no queue, which is an error. The locks stay: who has one returns it by name."""
    queues = {name: getattr(api_setup, name) for name in _QUEUES}
    pool = getattr(api_setup, _POOL)
    for name in (*_QUEUES, _POOL, "_GS_RETURN_CUID", "_LS_RETURN_CUID"):
        setattr(api_setup, name, None)
    waiting = list(api_setup._WAKEUPS.values())
    api_setup._WAKEUPS.clear()
    api_setup._INFRASTRUCTURE_CONNECTED = False
    return _Connection(queues, pool, (api_setup._GS_SEND_LOCK, api_setup._GS_RECV_LOCK), waiting)


def _close(connection: _Connection) -> None:
    """Have all threads leave a connection that was put aside, and close it.

    Raises:
        TimeoutError: one of them stays.
    """
    if not _is_free(connection.locks, 0.0):
        connection.queues[_ANSWERS].put(_unreadable(), timeout=_LEAVE_SECONDS)
        if not _is_free(connection.locks, _LEAVE_SECONDS):
            raise TimeoutError
    _wake(connection.waiting)
    for queue in connection.queues.values():
        queue.close()
    connection.pool.detach()


def _wake(waiting: Sequence[threading.Event]) -> None:
    """Wake those who wait for their turn to read: they find no queue, which is an error."""
    for _ in waiting:  # one leaves each time; the others may find that it is not their turn, and wait again
        for one in waiting:
            one.set()
        time.sleep(_TURN_SECONDS)


def _is_free(locks: Sequence[Any], seconds: float) -> bool:
    """Whether nobody holds any of the locks, or will have let go of it soon."""
    for lock in locks:
        if not lock.acquire(timeout=seconds):
            return False
        lock.release()
    return True


def _unreadable() -> Any:
    """Make a message that cannot be read, and is an error for whoever reads it."""
    from dragon.infrastructure.messages import InfraMsg

    class Unreadable(InfraMsg):  # type: ignore[misc]  # Dragon ships no type information
        def serialize(self) -> bytes:
            return b"the Dragon runtime has ended"

    return Unreadable(tag=0)


def _in_time(request: Callable[[], object]) -> bool:
    """Whether a request, which may never be answered, has done what it should."""
    is_done = threading.Event()

    def run() -> None:
        with contextlib.suppress(Exception):  # of each part of Dragon a class of its own: the runtime is going, or gone
            request()
            is_done.set()

    thread = threading.Thread(target=run, name="rhapsody-dragon-disconnect", daemon=True)
    thread.start()
    thread.join(ANSWER_DEADLINE)
    return is_done.is_set()
