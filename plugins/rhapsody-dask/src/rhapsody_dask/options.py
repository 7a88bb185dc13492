"""What users write, checked and translated into Dask's words. Pure: nothing here imports Dask."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import attrs
from rhapsody.errors import BackendConfigurationError, UnsupportedError
from rhapsody.plugin import ComputeTask

TASK_OPTIONS: Final = frozenset({"resources", "priority", "retries", "workers", "allow_other_workers"})
GPU: Final = "GPU"  # the name under which Dask's documentation has workers offer their GPUs
# The backend's own business, however LocalCluster calls it.
_RESERVED: Final = {
    "asynchronous": "the backend decides on which loop the cluster runs",
    "loop": "the backend decides on which loop the cluster runs",
    "start": "Dask itself ignores it",
    "ip": "Dask calls it host",
}


@attrs.frozen(kw_only=True)
class Placement:
    """Where and how one unit runs; units of the same placement are submitted together.

    Attributes:
        resources: Dask resources that its worker must have free, as sorted pairs.
        priority: higher goes first.
        retries: how often a failed task is run again on its worker, and a lost one on another.
        workers: addresses, names or hosts of the workers that may run it; empty for all.
        allow_other_workers: whether `workers` is only a preference.
    """

    resources: tuple[tuple[str, float], ...] = ()
    priority: int = 0
    retries: int = 0
    workers: tuple[str | int, ...] = ()
    allow_other_workers: bool = False

    def keywords(self) -> dict[str, Any]:
        """Return the keywords for `Client.map`.

        Retries are not among them: the worker and the backend see to these, so that nothing runs twice unasked.
        """
        words: dict[str, Any] = {"priority": self.priority, "pure": False}
        if self.resources:
            words["resources"] = dict(self.resources)
        if self.workers:
            words["workers"] = list(self.workers)
            words["allow_other_workers"] = self.allow_other_workers
        return words


ANYWHERE: Final = Placement()


@attrs.frozen(kw_only=True)
class WorkerInfo:
    """What is known of one worker.

    Attributes:
        address: of the worker, as `tcp://host:port`.
        name: that Dask gave it; a number in a LocalCluster.
        host: where it runs.
        threads: tasks that it runs at the same time.
        resources: Dask resources that it offers in all.
        packages: versions of Python and of packages there.
        directory: its scratch folder.
    """

    address: str
    name: str | int
    host: str
    threads: int
    resources: Mapping[str, float] = attrs.field(factory=dict)
    packages: Mapping[str, str | None] = attrs.field(factory=dict)
    directory: str = ""

    def may_run(self, placement: Placement) -> bool:
        """Return whether the worker could run a unit of this placement, once it has nothing else to do."""
        if placement.workers and not placement.allow_other_workers:
            known = {self.address, self.address.rpartition("://")[2], str(self.name), self.host}
            if known.isdisjoint(map(str, placement.workers)):
                return False
        return all(self.resources.get(name, 0) >= amount for name, amount in placement.resources)


def check_cluster_keywords(given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse keywords that LocalCluster does not know.

    Args:
        given: the user's `resources`.
        known: the keywords of LocalCluster and of the workers that it starts.

    Raises:
        BackendConfigurationError: one that is unknown, or not the user's to set.
    """
    known = sorted(set(known) - set(_RESERVED))
    for key in given:
        if key in _RESERVED:
            raise BackendConfigurationError(f"resources[{key!r}] of the dask backend cannot be set: {_RESERVED[key]}")
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "it takes n_workers, threads_per_worker, ..."
            raise BackendConfigurationError(f"LocalCluster has no keyword {key!r} (in resources of dask): {hint}")
    _check_counts(given)


def _check_counts(given: Mapping[str, Any]) -> None:
    for key in ("n_workers", "threads_per_worker"):
        value = given.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise BackendConfigurationError(f"resources of dask: {key} must be an integer from 0, not {value!r}")


def placement_of(task: ComputeTask, backend: str) -> Placement:
    """Translate a task's resources and options; core has refused what the backend does not declare.

    Raises:
        UnsupportedError: a value that makes no sense for its option.
    """
    if task.resources is None and not task.backend_options:
        return ANYWHERE
    options = dict(task.backend_options or {})
    where = f"task {task.uid}: backend {backend!r}"
    resources = _resources(options.get("resources"), where)
    if task.resources is not None and task.resources.gpus_per_rank:
        resources.setdefault(GPU, float(task.resources.gpus_per_rank))
    workers = options.get("workers") or ()
    if isinstance(workers, str | int):
        workers = (workers,)
    if not isinstance(workers, Sequence) or not all(isinstance(worker, str | int) for worker in workers):
        raise UnsupportedError(f"{where}: option workers must be names or addresses, not {workers!r}")
    allow_others = options.get("allow_other_workers", False)
    if allow_others and not workers:
        raise UnsupportedError(f"{where}: option allow_other_workers means nothing without workers")
    retries = _integer(options, "retries", where)
    if retries < 0:
        raise UnsupportedError(f"{where}: option retries must not be negative, as {retries} is")
    return Placement(
        resources=tuple(sorted(resources.items())),
        priority=_integer(options, "priority", where),
        retries=retries,
        workers=tuple(workers),
        allow_other_workers=bool(allow_others),
    )


def unmet(placement: Placement, workers: Iterable[WorkerInfo]) -> str | None:
    """Say why no worker can ever run a unit of this placement; None if one can.

    Args:
        placement: what it asks for.
        workers: all that there are; workers that join later may make it possible.
    """
    workers = list(workers)
    if any(worker.may_run(placement) for worker in workers):
        return None
    offers = "; ".join(
        f"{worker.name} at {worker.address} offers {_amounts(worker.resources.items()) or 'no resources'}"
        for worker in workers[:20]
    )
    wanted = []
    if placement.resources:
        wanted.append(f"has {_amounts(placement.resources)}")
    if placement.workers and not placement.allow_other_workers:
        wanted.append(f"is one of {', '.join(map(str, placement.workers))}")
    more = f" (and {len(workers) - 20} more)" if len(workers) > 20 else ""
    return f"no worker {' and '.join(wanted) or 'is there'}: {offers or 'there are none'}{more}"


def mismatches(ours: Mapping[str, str | None], worker: WorkerInfo) -> list[str]:
    """Name what differs between us and a worker in a way that breaks functions on their way: Python, cloudpickle."""
    told = []
    for package, digits in (("python", 2), ("cloudpickle", 3)):
        here, there = ours.get(package), worker.packages.get(package)
        if here and there and here.split(".")[:digits] != there.split(".")[:digits]:
            told.append(f"{package} {here} here and {there} on worker {worker.address}")
    return told


def _resources(value: Any, where: str) -> dict[str, float]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(
        isinstance(key, str) and isinstance(amount, int | float) and amount > 0 for key, amount in value.items()
    ):
        raise UnsupportedError(
            f"{where}: option resources must map names of Dask resources to positive amounts, not {value!r}"
        )
    return {key: float(amount) for key, amount in value.items()}


def _integer(options: Mapping[str, Any], key: str, where: str) -> int:
    value = options.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UnsupportedError(f"{where}: option {key} must be an integer, not {value!r}")
    return value


def _amounts(pairs: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{name}={amount:g}" for name, amount in pairs)
