"""The process inside the runtime that holds Dragon's Batch.

Batch starts threads, imports a web server and writes a file into the current folder; here it does so away from the
user's process, its folder and its event loop. Units come through one queue, and what became of them goes back through
another, next to the frames that the functions themselves report.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from .far import extend_path
from .far_unit import introduce, run_alone, run_wanted
from .messages import Joiner, Kind, Message, received, send

#: Seconds that the polling thread blocks in Batch's poll before it looks whether Batch is still there.
POLL_SECONDS: Final = 1.0
#: Seconds for Batch to leave in order.
TERMINATE_SECONDS: Final = 15.0
#: Seconds for the result of a task that has ended to arrive.
RESULT_SECONDS: Final = 4.0
#: The unit that stands for the introduction of a worker, and how many there are for each worker at most.
INTRODUCTION: Final = 0
INTRODUCTIONS: Final = 4
#: Seconds for which the first units wait for the workers to introduce themselves.
INTRODUCTION_SECONDS: Final = 10.0


class Request(NamedTuple):
    """One unit for Batch.

    Attributes:
        kind: "function" for a payload that a worker of Batch runs; "process" for one process, "job" for several.
        payload: of a function; with kind "process" it is run in that process.
        plan: the processes: how many, target, arguments, keywords.
        timeout: seconds; None for no limit.
        pmi: how ranks find each other; None for not at all.
        is_program: whether a payload that a worker runs is of an executable.
        sign: a file for a process that runs a payload to make when it begins.
    """

    kind: str
    payload: bytes = b""
    plan: Sequence[tuple[int, str, Sequence[str], dict[str, Any]]] = ()
    timeout: float | None = None
    pmi: str | None = None
    is_program: bool = False
    sign: str = ""


def host(
    inbox: Any,
    outbox: Any,
    workers_per_node: int | None,
    disable_telemetry: bool,
    path: Sequence[str],
    workers: int,
) -> None:
    """Start Batch, which then has so many workers, and serve units until told to leave; the body of the process."""
    extend_path(path)
    send(outbox, 0, 0, Kind.READY, str(os.getpid()).encode())
    try:
        from dragon.workflows.batch import Batch

        batch = Batch(disable_telem=disable_telemetry, workers_per_node=workers_per_node)
    except Exception as error:
        send(outbox, 0, 0, Kind.STARTED, f"{type(error).__name__}: {error}".encode())
        return
    send(outbox, 0, 0, Kind.STARTED)
    _Host(batch, outbox, path, workers).serve(inbox)


class _Host:
    def __init__(self, batch: Any, outbox: Any, path: Sequence[str], workers: int) -> None:
        self._batch = batch
        self._outbox = outbox
        self._path = path
        self._lock = threading.Lock()
        self._tasks: dict[str, tuple[int, Any]] = {}  # by Batch's own uid: our unit, and Batch's task
        self._units: dict[int, Any] = {}
        self._early: set[str] = set()  # completed before they were recorded
        self._leaving = False
        self._workers, self._known, self._introductions = workers, set[int](), INTRODUCTIONS * workers
        self._all_known = threading.Event()

    def serve(self, inbox: Any) -> None:
        for _ in range(self._workers):
            self._introduce()
        poller = threading.Thread(target=self._poll, name="rhapsody-poll", daemon=True)
        poller.start()
        self._all_known.wait(INTRODUCTION_SECONDS)  # a job would come first, and its worker stay unknown meanwhile
        for _, unit, kind, data in received(inbox, Joiner()):
            if kind is Kind.RUN:
                self._submit(unit, data)
            elif kind is Kind.TERMINATE:
                threading.Thread(target=self._cancel, args=(unit,), daemon=True).start()
        self._leaving = True
        self._batch.terminate(timeout=TERMINATE_SECONDS)

    def _introduce(self) -> None:
        self._introductions -= 1
        task = self._batch.function(introduce, self._outbox)
        with self._lock:
            self._tasks[task.uid] = (INTRODUCTION, task)

    def _introduced(self, task: Any) -> None:
        """Ask once more where it was one that is known, and somebody is not."""
        try:
            self._known.add(task.get(timeout=RESULT_SECONDS))
            if len(self._known) < self._workers and self._introductions > 0:
                self._introduce()
        except Exception:  # the worker has died meanwhile
            pass
        if len(self._known) >= self._workers:
            self._all_known.set()

    def _submit(self, unit: int, request: Message) -> None:
        try:
            task = self._start(unit, Request(*pickle.loads(request)))
        except Exception as error:
            self._tell(unit, "refused", f"{type(error).__name__}: {error}")
            return
        with self._lock:
            early = task.uid in self._early
            self._early.discard(task.uid)
            if not early:
                self._tasks[task.uid] = (unit, task)
                self._units[unit] = task
        if early:
            self._ended(unit, task)

    def _start(self, unit: int, request: Request) -> Any:
        from dragon.infrastructure.facts import PMIBackend
        from dragon.native.process import ProcessTemplate

        options: dict[str, Any] = {} if request.timeout is None else {"timeout": request.timeout}
        if request.kind == "function":
            return self._batch.options(**options).function(
                run_wanted, unit, request.payload, self._outbox, request.is_program
            )
        templates = []
        for count, target, args, keywords in request.plan:
            if request.payload:
                told = (unit, request.payload, self._outbox, self._path, request.sign)
                template = ProcessTemplate(target=run_alone, args=told, **keywords)
            else:
                template = ProcessTemplate(target=target, args=list(args), **keywords)
            templates.append((count, template))
        if request.kind == "process":
            return self._batch.options(**options).process(templates[0][1])
        pmi = None if request.pmi is None else PMIBackend.from_str(request.pmi)
        return self._batch.options(pmi=pmi, **options).job(templates)

    def _poll(self) -> None:
        while not self._leaving:
            try:
                uid = self._batch.poll(timeout=POLL_SECONDS)
            except Exception as error:
                if not self._leaving:
                    self._tell(0, "lost", f"{type(error).__name__}: {error}")
                return
            if uid is None:
                continue
            with self._lock:
                found = self._tasks.pop(uid, None)
                if found is None:
                    self._early.add(uid)
                    continue
            if found[0] == INTRODUCTION:
                self._introduced(found[1])
            else:
                self._ended(*found)

    def _ended(self, unit: int, task: Any) -> None:
        from dragon.workflows.batch import TaskCancelledError

        self._units.pop(unit, None)
        try:
            value = task.get(timeout=RESULT_SECONDS)
        except TaskCancelledError:
            self._tell(unit, "canceled", None)
        except TimeoutError:
            self._tell(unit, "timeout", None)
        except Exception as error:
            self._tell(unit, "failed", f"{type(error).__name__}: {error}")
        else:
            self._tell(unit, "ended", value)

    def _cancel(self, unit: int) -> None:
        task = self._units.get(unit)
        if task is not None:
            try:
                if task.cancel(timeout=10.0):
                    self._tell(unit, "stopping", None)
            except Exception:  # whatever becomes of the task is told when it ends
                pass

    def _tell(self, unit: int, how: str, value: Any) -> None:
        send(self._outbox, 0, unit, Kind.JOB, pickle.dumps((how, value)))
