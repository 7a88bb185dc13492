"""`RadicalExecutionBackend`: runs tasks on one RADICAL-Pilot pilot."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import secrets
import shutil
import sys
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
from rhapsody import __version__
from rhapsody.api import ComputeTask, TaskState
from rhapsody.errors import BackendStartError, SubmitError, UnsupportedError
from rhapsody.plugin import (
    EXECUTABLE,
    BackendCapabilities,
    BackendContext,
    BackendLost,
    Backlog,
    Batching,
    CancelResult,
    Capacity,
    Deadlines,
    ExecutionBackend,
    FileStore,
    Outcome,
    TaskBatch,
    command_of,
    hookimpl,
)

from . import batch_main, catalogue, description
from .errors import PilotLostError
from .ledger import Held, Ledger
from .pilot import NEEDS_FORK, Listener, PilotProcess
from .resources import read_resources

if not catalogue.installed():
    raise ImportError("the radical backend needs radical.pilot, which cannot be imported: pip install radical.pilot")

BULK: Final = 1024  # executables in one call of RADICAL-Pilot, at most
BATCHES_PER_SLOT: Final = 2  # one that runs, and one that waits at the agent for the slot to be free
# Seconds that a pilot on this machine has to start: it takes 20 on a quiet one, and many times that on a busy one.
LOCAL_START_LIMIT: Final = 300.0
QUEUE_LIMIT: Final = 24 * 3600.0  # seconds that a pilot may wait in the queue of a batch system
_ELSEWHERE: Final = "RADICAL-Pilot's agent cannot run on Python 3.14: give the pilot's machine another for it"
_ODD: Final = re.compile(r"[^A-Za-z0-9_.-]+")


class RadicalExecutionBackend(ExecutionBackend):
    """Runs executables, MPI jobs and functions on a pilot: one allocation that many tasks share.

    Args:
        resources: fields of RADICAL-Pilot's PilotDescription: `resource` (a machine's label, default
            `local.localhost`), `runtime` (minutes, default 30), `cores` (default: this machine's), `gpus`, `nodes`,
            `queue`, `project`, `access_schema`, and others.
        name: the name under which tasks choose the backend.
        raptor_config: has no effect, since functions need no Raptor here, and is warned of; it may also come before the
            name, as older scripts give it.
        batching: how function tasks are grouped; see `ExecutionBackend`, also for `max_in_flight`.

    Raises:
        BackendConfigurationError: an unknown key or machine, or a value that makes no sense.
    """

    interface_version = 1
    capabilities = BackendCapabilities(
        cancel_functions=True,
        cancel_executables=True,
        ranks=True,
        cores_per_rank=True,
        gpus=True,
        memory=True,
        shared_data=True,
        options=None,  # checked by name and by type in rhapsody_validate
    )

    def __init__(
        self,
        resources: Mapping[str, Any] | None = None,
        name: str | Mapping[str, Any] = "radical",
        raptor_config: Mapping[str, Any] | str | None = None,
        *,
        batching: Batching | Mapping[str, Any] | bool | float | None = None,
        max_in_flight: int | None = None,
    ) -> None:
        if isinstance(name, Mapping):
            name, raptor_config = (raptor_config if isinstance(raptor_config, str) else "radical"), name
        super().__init__(name, batching=batching, max_in_flight=max_in_flight)
        if raptor_config:
            text = f"backend {name!r} runs functions without Raptor: raptor_config has no effect"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        self.request = read_resources(resources, catalogue.machines())
        self.deadlines = Deadlines(init=LOCAL_START_LIMIT if self.request.local else QUEUE_LIMIT)
        self._link_files(self.request.shared_files)
        if not self.request.shared_files:
            self.capabilities = attrs.evolve(self.capabilities, functions=False)
        self._context: BackendContext | None = None
        self._folder = Path()
        self._input = Path()  # below it, for the files that this pilot's tasks read
        self._process: PilotProcess | None = None
        self._ledger: Ledger | None = None
        self._active: asyncio.Future[None] | None = None
        self._closing = False
        self._numbers = itertools.count()

    # -- hooks -------------------------------------------------------------------------------------------------------

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        """Start a pilot, and wait until it is active."""
        self._context = context
        self._closing = False
        self._active = context.loop.create_future()
        self._ledger = Ledger(lambda: context.sandbox)
        self._folder = context.sandbox.resolve() / _ODD.sub("_", self.name)
        sid = f"rp.{_ODD.sub('_', context.session)}.{secrets.token_hex(4)}"
        context.store = FileStore(self._folder / "stored")
        self._input = self._folder / "input" / sid  # an earlier run of the same session may have left its own
        listener = Listener(event=self._on_event, poll=self._poll, gone=self._gone)
        self._process = PilotProcess(self.request, self._folder, sid, listener)
        if NEEDS_FORK and not self.request.local:
            context.log.warning("pilot_needs_fork", backend=self.name, why=_ELSEWHERE)
        context.log.info("pilot_starting", resources=dict(self.request.description), folder=str(self._folder))
        await asyncio.to_thread(self._prepare)
        await self._active
        slots = self.request.slots
        context.set_capacity(Capacity(slots=slots, units=BATCHES_PER_SLOT * slots))

    @hookimpl
    def rhapsody_validate(self, tasks: Sequence[ComputeTask]) -> None:
        """Refuse options and fields that RADICAL-Pilot cannot take, and tasks that are larger than the pilot."""
        for task in tasks:
            description.check(task, self.name)
            description.check_size(task, self.name, self.request)
            description.check_fields(task, self.name, self.request)

    @hookimpl
    def rhapsody_batch(self, backlog: Backlog) -> Sequence[ComputeTask] | None:
        """Take executables in bulk; functions are left to the default."""
        if backlog.peek().kind is not EXECUTABLE:
            return None
        room = itertools.repeat(None, BULK)
        return backlog.take_while(lambda task: task.kind is EXECUTABLE and next(room, self) is not self)

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> Awaitable[None] | None:
        """Give a batch to the pilot: each executable by itself, functions as one RADICAL-Pilot task."""
        if batch.tasks[0].kind is not EXECUTABLE:
            return asyncio.to_thread(self._submit_functions, batch)
        if any(task.stdin is not None for task in batch.tasks):
            return asyncio.to_thread(self._submit_executables, batch)
        self._submit_executables(batch)
        return None

    @hookimpl
    async def rhapsody_cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        """Stop tasks: executables through the pilot, functions without harm to the rest of their batch."""
        return await asyncio.to_thread(self._cancel, tasks)

    def _cancel(self, tasks: Sequence[ComputeTask]) -> dict[str, CancelResult]:
        # All of it in one thread, which goes on if the caller is interrupted: the events of a recalled batch come from
        # here alone.
        assert self._ledger is not None
        assert self._process is not None
        results, ending, events = self._ledger.cancel(tasks)
        if ending:
            self._process.cancel(ending)
        self._put(events)
        return results

    @hookimpl
    async def rhapsody_shutdown(self, wait: bool) -> None:
        """Cancel the pilot, close RADICAL-Pilot's session, and end all of its processes."""
        self._closing = True
        if self._process is not None:
            await asyncio.to_thread(self._process.close)
            await asyncio.to_thread(self._tidy)

    # -- submission --------------------------------------------------------------------------------------------------

    def _submit_executables(self, batch: TaskBatch) -> None:
        entries: list[Held] = []
        descriptions: list[dict[str, Any]] = []
        for task in batch.tasks:
            uid = self._next_uid()
            try:
                described = description.describe_executable(task, uid, self.name, self._stdin_of(task, uid))
            except UnsupportedError as error:
                self._put([Outcome(task.uid, TaskState.FAILED, exception=error)])
                continue
            except Exception as error:  # its arguments' own code, or no space for its input: the others go on
                problem = SubmitError(
                    f"task {task.uid}: backend {self.name!r} could not send it: {type(error).__name__}: {error}"
                )
                problem.__cause__ = error
                self._put([Outcome(task.uid, TaskState.FAILED, exception=problem)])
                continue
            descriptions.append(described)
            entries.append(Held(uid, batch, [task]))
        self._send(entries, descriptions)

    def _submit_functions(self, batch: TaskBatch) -> None:
        uid = self._next_uid()
        folder = self._input / uid
        payload = batch.encode()
        if not batch.shipped:
            return
        folder.mkdir()
        (folder / batch_main.PAYLOAD).write_bytes(payload)
        command = [sys.executable, "-m", "rhapsody_radical.batch_main", __version__, str(folder)]
        alone = batch.tasks[0] if len(batch) == 1 else None
        self._send([Held(uid, batch, list(batch.shipped), folder)], [description.describe_batch(command, uid, alone)])

    def _stdin_of(self, task: ComputeTask, uid: str) -> str | None:
        if task.stdin is None or isinstance(task.stdin, Path):
            return command_of(task, self._folder).stdin_path
        path = self._input / f"{uid}.stdin"
        path.write_bytes(task.stdin.encode() if isinstance(task.stdin, str) else task.stdin)
        return str(path)

    def _send(self, entries: Sequence[Held], descriptions: Sequence[Mapping[str, Any]]) -> None:
        assert self._ledger is not None
        if self._process is None or self._closing:
            raise SubmitError(f"backend {self.name!r} is not running")
        self._ledger.add(entries)
        self._process.submit(descriptions)

    def _next_uid(self) -> str:
        return f"task.{next(self._numbers):06d}"

    # -- reports, on the pilot's own thread -------------------------------------------------------------------------

    def _on_event(self, event: Mapping[str, Any]) -> None:
        assert self._context is not None
        assert self._ledger is not None
        kind = event["event"]
        if kind == "tasks":
            self._put(self._ledger.apply(event["tasks"], event["at"]))
            for core in self._ledger.take_other_cores():
                self._context.compare_core(core, "on the pilot")
        elif kind == "submitted":
            self._context.log.info("pilot_submitted", sandbox=event["sandbox"])
        elif kind == "active":
            self._context.log.info("pilot_active")
            self._started(None)
        elif kind == "lost":
            self._lost(event["state"], event["reason"])

    def _poll(self) -> bool:
        assert self._ledger is not None
        assert self._process is not None
        if self._ledger.has_running_batches:
            self._put(self._ledger.read_frames())
            if halted := self._ledger.take_halted():
                self._process.cancel(halted)
        return self._ledger.has_running_batches

    def _gone(self) -> None:
        if not self._closing:
            assert self._process is not None
            self._lost("gone", self._process.said())

    def _lost(self, state: str, reason: str) -> None:
        if self._closing:
            return
        how = {
            "DONE": f"ended by itself; its runtime was {self.request.description['runtime']} minutes",
            "FAILED": "failed",
            "CANCELED": "was canceled from outside this session",
        }.get(state, "is gone: the process that held RADICAL-Pilot ended")
        text = f"the pilot on {self.request.description['resource']} {how} (files in {self._folder})"
        text += f"\n{reason}" if reason else ""
        self._started(BackendStartError(text))
        self._put([BackendLost(PilotLostError(f"backend {self.name!r}: {text}"))])

    def _started(self, error: Exception | None) -> None:
        assert self._context is not None
        active = self._active
        assert active is not None

        def settle() -> None:
            if active.done():
                return
            if error is None:
                active.set_result(None)
            else:
                active.set_exception(error)

        _on_loop(self._context.loop, settle)

    def _put(self, events: Sequence[Any]) -> None:
        assert self._context is not None
        if events:
            self._context.events.put(events)

    # -- files -------------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        assert self._process is not None
        self._input.mkdir(parents=True)
        (self._input / batch_main.SEARCH_PATH).write_text(
            json.dumps([str(Path(entry).absolute()) for entry in sys.path])
        )
        self._process.start()

    def _tidy(self) -> None:
        """Remove what only a running pilot needs; its logs and the output of tasks stay."""
        for name in ("config", ".radical"):
            shutil.rmtree(self._folder / name, ignore_errors=True)
        for path in self._input.glob("*"):
            if path.is_file():
                path.unlink()
        for folder in (self._input, self._input.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _on_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:  # the loop is closed: nothing waits for this any more
        return
