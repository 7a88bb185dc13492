"""Checks what users write and translates it to Dask's keywords. Pure: nothing here imports Dask."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import attrs
from rhapsody.errors import BackendConfigurationError, UnsupportedError
from rhapsody.plugin import ComputeTask

TASK_OPTIONS: Final = frozenset({"resources", "priority", "retries", "workers", "allow_other_workers"})
GPU: Final = "GPU"  # the name under which Dask's documentation has workers offer their GPUs
_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
OPEN: Final = (
    "backend {backend!r}: whoever reaches {address} can run code as you: the scheduler has no certificates; start it "
    "with them, and give the backend security=Security(...), or listen on the loopback alone"
)
# Keywords of LocalCluster that the backend sets itself.
_RESERVED: Final = {
    "asynchronous": "the backend decides on which loop the cluster runs",
    "loop": "the backend decides on which loop the cluster runs",
    "start": "Dask itself ignores it",
    "ip": "Dask calls it host",
}


@attrs.frozen(kw_only=True)
class Placement:
    """Where and how one batch runs; batches of the same placement are submitted together.

    Attributes:
        resources: Dask resources that its worker must have free, as sorted pairs.
        priority: higher goes first.
        retries: how often a failed task is run again on its worker, and a lost one on another.
        workers: addresses, names or hosts of the workers that may run it; empty for all.
        allow_other_workers: whether `workers` is only a preference.
        cores: threads of its worker that it takes.
        memory: bytes of its worker's limit that it takes.
    """

    resources: tuple[tuple[str, float], ...] = ()
    priority: int = 0
    retries: int = 0
    workers: tuple[str | int, ...] = ()
    allow_other_workers: bool = False
    cores: int = 1
    memory: int = 0

    def keywords(self, workers: Iterable[WorkerInfo] = ()) -> dict[str, Any]:
        """Return the keywords for `Client.map`.

        Args:
            workers: all that there are. Those that are too small are left out; Dask counts tasks, not their threads.

        Retries are not among them: the worker and the backend do these, so that nothing runs twice unasked.
        """
        keywords: dict[str, Any] = {"priority": self.priority, "pure": False}
        if self.resources:
            keywords["resources"] = dict(self.resources)
        large = list(workers) if self.cores > 1 or self.memory else []
        fit = [worker.address for worker in large if worker.may_run(self)]
        if len(fit) < len(large):
            keywords["workers"], keywords["allow_other_workers"] = fit, False
        elif self.workers:
            keywords["workers"] = list(self.workers)
            keywords["allow_other_workers"] = self.allow_other_workers
        return keywords


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
        memory: its limit, in bytes; 0 where it has none to share out.
        packages: versions of Python and of packages there.
        directory: its scratch folder.
    """

    address: str
    name: str | int
    host: str
    threads: int
    resources: Mapping[str, float] = attrs.field(factory=dict)
    memory: int = 0
    packages: Mapping[str, str | None] = attrs.field(factory=dict)
    directory: str = ""

    def may_run(self, placement: Placement) -> bool:
        """Return whether the worker could run a batch of this placement, once it has nothing else to do."""
        if placement.workers and not placement.allow_other_workers:
            known = {self.address, self.address.rpartition("://")[2], str(self.name), self.host}
            if known.isdisjoint(map(str, placement.workers)):
                return False
        if placement.cores > self.threads or placement.memory > self.memory:
            return False
        return all(self.resources.get(name, 0) >= amount for name, amount in placement.resources)


def is_open(address: str | None) -> bool:
    """Whether a scheduler listens beyond the loopback without certificates."""
    protocol, _, rest = (address or "").partition("://")
    if protocol not in ("tcp", "ws", "ucx"):
        return False
    host = rest.rpartition(":")[0].strip("[]")
    return not (host.startswith("127.") or host in ("localhost", "::1"))


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


def runs_one_at_a_time(given: Mapping[str, Any]) -> bool:
    """Whether each worker of a LocalCluster of these keywords is a process that runs one task at a time, for sure."""
    has_nannies = given.get("processes", True) is True and "worker_class" not in given
    return given.get("threads_per_worker") == 1 and has_nannies


def placement_of(task: ComputeTask, backend: str) -> Placement:
    """Translate a task's resources and options; core has refused what the backend does not declare.

    Raises:
        UnsupportedError: an invalid value of an option.
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
        cores=1 if task.resources is None else task.resources.cores,
        memory=0 if task.resources is None else task.resources.memory or 0,
    )


def threads_of(task: ComputeTask) -> dict[str, dict[str, str]]:
    """Return the variables that keep the libraries of a task to its cores, by its uid."""
    if task.resources is None:
        return {}
    return {task.uid: dict.fromkeys(_THREADS, str(task.resources.cores_per_rank))}


def unmet(placement: Placement, workers: Iterable[WorkerInfo]) -> str | None:
    """Return why no worker can ever run a batch of this placement; None if one can.

    Args:
        placement: what it asks for.
        workers: all that there are; workers that join later may make it possible.
    """
    workers = list(workers)
    if any(worker.may_run(placement) for worker in workers):
        return None
    offers = "; ".join(
        f"{worker.name} at {worker.address} offers {_offer(worker, placement)}" for worker in workers[:20]
    )
    wanted = []
    if placement.resources:
        wanted.append(f"has {_amounts(placement.resources)}")
    if placement.cores > 1:
        wanted.append(f"has {placement.cores} threads")
    if placement.memory:
        wanted.append(f"has {placement.memory} bytes of memory")
    if placement.workers and not placement.allow_other_workers:
        wanted.append(f"is one of {', '.join(map(str, placement.workers))}")
    more = f" (and {len(workers) - 20} more)" if len(workers) > 20 else ""
    return f"no worker {' and '.join(wanted) or 'is there'}: {offers or 'there are none'}{more}"


def mismatches(ours: Mapping[str, str | None], worker: WorkerInfo) -> list[str]:
    """Name what differs between here and a worker in a way that breaks tasks: Python, cloudpickle, rhapsody-core."""
    found = []
    for package, digits in (("python", 2), ("cloudpickle", 3), ("rhapsody-core", None)):
        here, there = ours.get(package), worker.packages.get(package)
        if here and there and here.split(".")[:digits] != there.split(".")[:digits]:
            found.append(f"{package} {here} here and {there} on worker {worker.address}")
    return found


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


def _offer(worker: WorkerInfo, placement: Placement) -> str:
    """Name what a worker has of the kinds that a placement asks for."""
    offers = [_amounts(worker.resources.items())] if worker.resources else []
    offers += [f"{worker.threads} threads"] if placement.cores > 1 else []
    offers += [f"{worker.memory} bytes of memory"] if placement.memory else []
    return ", ".join(offers) or "no resources"


def _amounts(pairs: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{name}={amount:g}" for name, amount in pairs)
