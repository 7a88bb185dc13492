"""What runs inside Dask's scheduler: a watcher for each client of ours, and the answer to its withdrawals.

The watcher's messages go the way of the workers' (see `on_worker`):

    [JOINED, worker]    a worker has joined; the fields of `WorkerInfo`
    [LEFT, address]     a worker has left
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Final

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

JOINED, LEFT = "joined", "left"
WITHDRAWN, GONE, UNKNOWN = "withdrawn", "gone", "unknown"

LEFT_BEHIND: Final = "rhapsody_left"  # annotation: the workers that were lost with the unit


class Watcher(SchedulerPlugin):  # type: ignore[misc]  # distributed ships no types
    """Tells one client of the workers, and marks units that were on a worker when it was lost.

    The scheduler runs the task of a lost worker again on another. The mark goes with the unit to the next worker,
    which refuses it: a task may have effects, and runs at most once unless the user said otherwise.
    """

    def __init__(self, scheduler: Scheduler, token: str, client: str) -> None:
        self.name = f"rhapsody-{token}"
        self._scheduler = scheduler
        self._token = token
        self._client = client
        self._workers = set(scheduler.workers)

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Report a worker that joins."""
        self._workers.add(worker)
        scheduler.log_event(self._token, [JOINED, describe_worker(scheduler, worker)])

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        """Report a worker that leaves."""
        self._workers.discard(worker)
        scheduler.log_event(self._token, [LEFT, worker])

    def transition(self, key: Any, start: str, finish: str, *_: Any, **__: Any) -> None:
        """Mark our units that are taken from a worker which is gone."""
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
        """Keep none of our messages: the scheduler would remember the last thousand."""
        if topic == self._token:
            self._scheduler._broker.truncate(topic)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Leave with the client, however that ended."""
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
        "packages": {name: packages.get(name) for name in ("python", "cloudpickle")},
        "directory": worker.local_directory,
    }


def attach(token: str, client: str, dask_scheduler: Scheduler) -> list[dict[str, Any]]:
    """Begin to watch for a client. Returns the workers, of which it will learn from now on by messages."""
    watcher = Watcher(dask_scheduler, token, client)
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
    """Take back units that no worker has, or that are where they were expected.

    Args:
        client: whose they are.
        expected: by key, the worker that has promised not to begin with the unit; None if nobody has.

    Returns:
        For each key WITHDRAWN, also where a worker has kept its promise before this; or "processing" and the worker
        that has it; GONE if it has ended or was lost with a worker; UNKNOWN if it has not arrived yet.
    """
    fates: dict[str, tuple[str, str | None]] = {}
    take: list[str] = []
    for key, address in expected.items():
        task = dask_scheduler.tasks.get(key)
        if task is None:
            fates[key] = (UNKNOWN, None)
        elif task.state == "processing" and task.processing_on.address != address:
            fates[key] = ("processing", task.processing_on.address)
        elif not _has_kept_a_promise(task) and (
            task.state in ("memory", "erred", "forgotten") or LEFT_BEHIND in (task.annotations or {})
        ):
            fates[key] = (GONE, None)
        else:
            fates[key] = (WITHDRAWN, None)
            take.append(key)
    if take:
        dask_scheduler.client_releases_keys(take, client, f"rhapsody-withdraw-{uuid.uuid4().hex[:8]}")
    return fates


def _has_kept_a_promise(task: Any) -> bool:
    """Whether a unit has ended on the scheduler because its worker did not begin it: `run_unit` returned False."""
    return bool(task.state == "memory" and task.type == "bool")
