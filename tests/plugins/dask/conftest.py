"""One real cluster of processes for all tests that leave it running."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from distributed import LocalCluster
    from rhapsody.api import Session


# Without the engine there is nothing to collect here; where it is required, the imports fail and say so.
IS_INSTALLED = all(importlib.util.find_spec(package) is not None for package in ("rhapsody_dask", "distributed"))
if not IS_INSTALLED and "dask" not in os.environ.get("RHAPSODY_REQUIRE_BACKENDS", "").split(","):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="package")
def cluster() -> Iterator[LocalCluster]:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", resources={"LICENCE": 1}, memory_limit="1GiB"
    ) as cluster:
        yield cluster


@pytest.fixture
async def session(cluster: LocalCluster, tmp_path: Path) -> AsyncIterator[Session]:
    from rhapsody.api import Session
    from rhapsody.backends import DaskExecutionBackend

    async with Session(backends=[DaskExecutionBackend(cluster=cluster)], work_dir=tmp_path) as session:
        yield session


Until = Callable[..., Awaitable[None]]


@pytest.fixture
def until() -> Until:
    """Wait for something that must become true; `seconds` is only for a hang."""

    async def wait(condition: Callable[[], Any], seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "did not happen in time"
            await asyncio.sleep(0.01)

    return wait
