"""What runs inside Dask's scheduler: a watcher for each client of ours, and the answer to its withdrawals.

The watcher's messages travel as the workers' do (see `on_worker`):

    [JOINED, worker]    a worker has joined; the fields of `WorkerInfo`
    [LEFT, address]     a worker has left
"""

from __future__ import annotations

import socket
import sys
import uuid
from collections.abc import Mapping
from typing import Any, Final

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

JOINED, LEFT = "joined", "left"
FRAMES: Final = "frames"  # of a worker
WITHDRAWN, GONE, UNKNOWN = "withdrawn", "gone", "unknown"

BEGIN: Final = "rhapsody_begin"  # what a worker asks before tasks begin; see `allowance`
LEFT_BEHIND: Final = "rhapsody_left"  # annotation: the workers that were lost with the batch


class Watcher(SchedulerPlugin):  # type: ignore[misc]  # distributed ships no types
    """Reports the workers to one client, and marks batches that were on a worker when it was lost.

    The scheduler runs the task of a lost worker again on another. The mark travels with the batch to the next worker,
    which refuses it: a task may have effects, and runs at most once unless the user asked for retries.
    """

    def __init__(self, scheduler: Scheduler, token: str, client: str, lost_after: float) -> None:
        self.name = f"rhapsody-{token}"
        self._scheduler = scheduler
        self._token = token
        self._client = client
        self._workers = set(scheduler.workers)
        self._lost_after = lost_after
        self._begun: dict[int, tuple[str, int]] = {}  # by batch: its worker, and how many tasks may have begun there

        def handle(**question: Any) -> bool:  # no partial: distributed logs the name of a handler
            return begin(scheduler, **question)

        scheduler.handlers[BEGIN] = handle
        for address in scheduler.workers:
            self._shorten(address)

    def may_begin(self, worker: str, number: int, tasks: int) -> bool:
        """Note that tasks begin, unless their worker is taken for lost, or the batch from it."""
        task = self._scheduler.tasks.get(f"{self.name}-{number}")
        if task is None or task.processing_on is None or task.processing_on.address != worker:
            return False
        self._begun[number] = worker, tasks
        return True

    def begun(self, worker: str, number: int) -> int:
        """Return how many tasks of a batch may have begun on a worker."""
        at, tasks = self._begun.get(number, ("", 0))
        return tasks if at == worker else 0

    def _shorten(self, address: str) -> None:
        """Have the kernel end the connection of a worker whose machine does not answer."""
        stream = self._scheduler.stream_comms.get(address)
        wire = getattr(getattr(getattr(stream, "comm", None), "stream", None), "socket", None)  # none of inproc
        if wire is not None:
            for option, value in _limits(self._lost_after):
                wire.setsockopt(socket.IPPROTO_TCP, option, value)

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Report a worker that joins."""
        self._workers.add(worker)
        scheduler.loop.call_later(1, self._shorten, worker)  # when it has its connection
        scheduler.log_event(self._token, [JOINED, describe_worker(scheduler, worker)])

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        """Report a worker that leaves."""
        self._workers.discard(worker)
        scheduler.log_event(self._token, [LEFT, worker])

    def transition(self, key: Any, start: str, finish: str, *_: Any, **__: Any) -> None:
        """Mark our batches that are taken from a lost worker; forget those that have ended."""
        if finish == "forgotten" and self._begun and isinstance(key, str) and key.startswith(self.name):
            number = int(key.rpartition("-")[2])
            if self._begun.get(number, ("", 0))[0] in self._scheduler.workers:  # of a lost one the client will ask
                del self._begun[number]
        if finish != "released" or start not in ("processing", "memory"):
            return
        if not isinstance(key, str) or not key.startswith(self.name):
            return
        scheduler = self._scheduler
        gone = self._workers.difference(scheduler.workers)  # `remove_worker` is called after the transitions
        task = scheduler.tasks.get(key)
        if gone and task is not None:
            annotations = dict(task.annotations or {})
            annotations[LEFT_BEHIND] = [*annotations.get(LEFT_BEHIND, ()), *gone]
            task.annotations = annotations

    def log_event(self, topic: str, msg: Any) -> None:
        """Note what a worker reports as begun; keep none of our messages: the last thousand would be remembered."""
        if topic == self._token:
            self._scheduler._broker.truncate(topic)
            if msg[0] == FRAMES and msg[-1] is not None and (number := msg[1]) in self._begun:
                self._begun[number] = msg[2], msg[-1]

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Remove the watcher with its client, however that ended."""
        if client == self._client:
            scheduler.plugins.pop(self.name, None)
            scheduler._broker._topics.pop(self._token, None)


def describe_worker(scheduler: Scheduler, address: str) -> dict[str, Any]:
    """Return the fields of `WorkerInfo`."""
    worker = scheduler.workers[address]
    packages = worker.versions.get("packages") or {}
    return {
        "address": address,
        "name": worker.name if isinstance(worker.name, int | str) else str(worker.name),
        "host": worker.host,
        "threads": worker.nthreads,
        "resources": dict(worker.resources),
        "memory": worker.memory_limit or 0,
        "packages": {name: packages.get(name) for name in ("python", "cloudpickle")},
        "directory": worker.local_directory,
    }


def begin(scheduler: Scheduler, token: str, worker: str, number: int, tasks: int) -> bool:
    """Answer a worker that asks whether tasks may begin; see `allowance`."""
    watcher = scheduler.plugins.get(f"rhapsody-{token}")
    return watcher is not None and watcher.may_begin(worker, number, tasks)


def begun(token: str, worker: str, number: int, dask_scheduler: Scheduler) -> int:
    """Return how many tasks of a batch may have begun on a worker that asks before."""
    watcher = dask_scheduler.plugins.get(f"rhapsody-{token}")
    return 0 if watcher is None else int(watcher.begun(worker, number))


def _limits(seconds: float) -> list[tuple[int, int]]:
    """Return options of TCP by which the kernel ends a connection without an answer after so many seconds; Linux's."""
    if sys.platform != "linux":
        return []
    idle = max(1, int(seconds / 4))
    every = max(1, int((seconds - idle) / 10))
    return [
        (socket.TCP_KEEPIDLE, idle),
        (socket.TCP_KEEPINTVL, every),
        (socket.TCP_KEEPCNT, max(1, int((seconds - idle) / every))),
        (socket.TCP_USER_TIMEOUT, int(1000 * seconds)),
    ]


def attach(token: str, client: str, lost_after: float, dask_scheduler: Scheduler) -> list[dict[str, Any]]:
    """Begin to watch for a client. Returns the workers; messages report every later change."""
    watcher = Watcher(dask_scheduler, token, client, lost_after)
    dask_scheduler.add_plugin(watcher, name=watcher.name)
    dask_scheduler.subscribe_topic(token, client)
    return [describe_worker(dask_scheduler, address) for address in dask_scheduler.workers]


def detach(token: str, client: str, dask_scheduler: Scheduler) -> None:
    """Stop watching."""
    watcher = dask_scheduler.plugins.get(f"rhapsody-{token}")
    if watcher is not None:
        watcher.remove_client(dask_scheduler, client)


def withdraw(
    client: str, expected: Mapping[str, str | None], dask_scheduler: Scheduler
) -> dict[str, tuple[str, str | None]]:
    """Take back batches that no worker has, or that are where they were expected.

    Args:
        client: whose they are.
        expected: by key, the worker that has promised not to begin with the batch; None if none has.

    Returns:
        For each key WITHDRAWN, also where a worker has kept its promise before this; or "processing" and the worker
        that has it; GONE if it has ended or was lost with a worker; UNKNOWN if it has not arrived yet.
    """
    answers: dict[str, tuple[str, str | None]] = {}
    take: list[str] = []
    for key, address in expected.items():
        task = dask_scheduler.tasks.get(key)
        if task is None:
            answers[key] = (UNKNOWN, None)
        elif task.state == "processing" and task.processing_on.address != address:
            answers[key] = ("processing", task.processing_on.address)
        elif not _has_kept_a_promise(task) and (
            task.state in ("memory", "erred", "forgotten") or LEFT_BEHIND in (task.annotations or {})
        ):
            answers[key] = (GONE, None)
        else:
            answers[key] = (WITHDRAWN, None)
            take.append(key)
    if take:
        dask_scheduler.client_releases_keys(take, client, f"rhapsody-withdraw-{uuid.uuid4().hex[:8]}")
    return answers


def _has_kept_a_promise(task: Any) -> bool:
    """Whether a batch has ended on the scheduler because its worker did not begin it: `run_batch` returned False."""
    return bool(task.state == "memory" and task.type == "bool")
