"""Makes the Dask clusters that the backend starts and closes: on this machine, and behind a batch queue."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import dask.config
from distributed import LocalCluster, Nanny, Scheduler, Security, Worker
from distributed.deploy.cluster import Cluster
from rhapsody.errors import BackendConfigurationError

from .queues import SYSTEMS, QueueRequest, check_queue_keywords, request_of

SCRATCH: Final = "rhapsody-dask"
# No dashboard unless asked for. What is left of it, a server that answers nothing, has any free port of the loopback.
NO_DASHBOARD: Final = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}


def cluster_keywords() -> set[str]:
    """Return the keywords that LocalCluster takes, its own and those that it passes on to workers."""
    words: set[str] = set()
    for kind in (LocalCluster, Nanny, Worker):
        for name, parameter in inspect.signature(kind.__init__).parameters.items():
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD and name not in ("self", "scheduler_ip"):
                words.add(name)
    return words


def queue_request(system: str, resources: Mapping[str, Any]) -> QueueRequest:
    """Check what a batch system is asked for.

    Raises:
        BackendConfigurationError: an unusable keyword, or dask-jobqueue is not installed.
    """
    request = request_of(system, resources)
    if importlib.util.find_spec("dask_jobqueue") is None:
        raise BackendConfigurationError(f"cluster={system!r} needs dask-jobqueue: pip install rhapsody-dask[jobqueue]")
    kind = _queue_class(request)
    known: set[str] = set()
    for one in (kind, *kind.__mro__, kind.job_cls, *kind.job_cls.__mro__):
        known.update(inspect.signature(one.__init__).parameters)
    check_queue_keywords(request, known - {"self", "args", "kwargs", "scheduler", "name", "job_cls", "scheduler_cls"})
    return request


def local_cluster(keywords: Mapping[str, Any], security: Security | bool | None, scratch: str) -> LocalCluster:
    """Make a cluster of this machine, which its loop then starts.

    Args:
        keywords: the user's.
        security: for connections; None for certificates of its own wherever it listens on a socket.
        scratch: folder for the scratch folders of its workers, unless the user has one.
    """
    given = dict(keywords)
    scheduler = dict(given.pop("scheduler_kwargs", None) or {})
    if "dashboard_address" not in given:
        scheduler = {**NO_DASHBOARD, **scheduler}
    if "local_directory" not in given:
        given["local_directory"] = scratch
        scheduler.setdefault("local_directory", scratch)
    if security is None and "security" not in given:
        security = _listens(given)
    if security:
        given["security"] = security
    elif given.get("security") is False:
        del given["security"]
    cluster = LocalCluster(**{**given, "scheduler_kwargs": scheduler, "asynchronous": True})
    return _without_pages(cluster, scheduler)


def _without_pages(cluster: Any, scheduler: Mapping[str, Any]) -> Any:
    """Let the scheduler, which is made when the cluster starts, answer nothing by HTTP unless it has a dashboard."""

    def make(**options: Any) -> Scheduler:
        with dask.config.set({"distributed.scheduler.http.routes": []}):
            return Scheduler(**options)

    if scheduler.get("dashboard") is False:
        cluster.scheduler_spec["cls"] = make
    return cluster


def _listens(given: Mapping[str, Any]) -> bool:
    """Whether a LocalCluster listens on a socket, and by a protocol that is not the user's own choice."""
    if "protocol" in given or "://" in str(given.get("host")):
        return str(given.get("protocol") or given.get("host")).startswith("tls")
    return given.get("processes") is not False or bool(given.get("scheduler_port"))


def queue_cluster(request: QueueRequest, security: Security | bool | None, folder: Path) -> Cluster:
    """Make a cluster whose workers are jobs of a batch system; its loop then starts it.

    Args:
        request: what it is asked for.
        security: for connections; None for certificates of its own.
        folder: of the session, on a file system that the jobs see: for their logs, and for the certificates.
    """
    keywords = dict(request.keywords)
    options = {**NO_DASHBOARD, **keywords.pop("scheduler_options", {})}
    keywords.setdefault("log_directory", str(folder))
    if security is not False:
        keywords |= {"security": True if security is None else security, "shared_temp_directory": str(folder)}
    cluster = _queue_class(request)(**keywords, scheduler_options=options, asynchronous=True)
    return _without_pages(cluster, options)


def remove_certificates(cluster: Cluster) -> None:
    """Remove the files in which dask-jobqueue gave the jobs their certificates."""
    for name, file in list(vars(cluster).items()):
        if name.startswith("_job_") and hasattr(file, "close"):
            file.close()


def _queue_class(request: QueueRequest) -> Any:
    return getattr(importlib.import_module("dask_jobqueue"), SYSTEMS[request.system])


def make_scratch() -> str:
    """Make the folder for the scratch folders of our own cluster's workers; Dask's own default is never removed.

    The folders of killed processes are removed first; their names have the number of the process.
    """
    parent = Path(dask.config.get("temporary-directory", None) or tempfile.gettempdir())
    for left in parent.glob(f"{SCRATCH}-*-*"):
        owner = left.name.split("-")[2]
        if owner.isdecimal() and not _is_alive(int(owner)):
            shutil.rmtree(left, ignore_errors=True)  # another user's stays
    return tempfile.mkdtemp(prefix=f"{SCRATCH}-{os.getpid()}-", dir=parent)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
