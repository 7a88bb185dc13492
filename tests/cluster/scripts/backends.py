"""The backends that the scripts of these tests use, each as a user makes it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from rhapsody.backends import get_backend


@contextlib.contextmanager
def slurm_cluster() -> Iterator[Any]:
    """A SLURMCluster of two jobs with two workers each."""
    from dask_jobqueue import SLURMCluster

    with SLURMCluster(
        cores=2,
        processes=2,
        memory="2GB",
        queue="debug",
        interface="eth0",
        local_directory="/tmp",
        log_directory="/tmp",
        job_extra_directives=["--exclusive"],
        scheduler_options={"dashboard": False},
        python=sys.executable,
    ) as cluster:
        cluster.scale(jobs=2)
        cluster.wait_for_workers(4, timeout=90)
        yield cluster


@contextlib.contextmanager
def backend(name: str, *arguments: str) -> Iterator[Any]:
    """Make the backend with this name."""
    if name == "dask-slurm":
        node = {"cores": 4, "processes": 2, "memory": "2 GB", "queue": "debug", "walltime": "00:10:00"}
        yield get_backend("dask", cluster="slurm", resources={"nodes": 2, **node, "interface": "eth0"})
    elif name == "dask-jobqueue":
        with slurm_cluster() as cluster:
            yield get_backend("dask", cluster=cluster)
    elif name == "dask-address":
        with slurm_cluster() as cluster:
            yield get_backend("dask", cluster=cluster.scheduler_address)
    else:
        yield get_backend(name)
