"""What core asks of every backend, on a cluster of the backend's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from rhapsody.backends import DaskExecutionBackend
from rhapsody.testing import BackendConformanceTests, die

pytestmark = [pytest.mark.engine("dask"), pytest.mark.timeout(240)]


@pytest.fixture(scope="class")
def new_backend() -> Callable[[], DaskExecutionBackend]:
    return lambda: DaskExecutionBackend(resources={"n_workers": 2, "threads_per_worker": 1, "resources": {"GPU": 1}})


class TestDask(BackendConformanceTests):
    title = "dask"
    patience = 120.0
    kill_worker = staticmethod(die)
    options: ClassVar[dict[str, Any]] = {"priority": 1, "retries": 1, "workers": [0, 1]}
