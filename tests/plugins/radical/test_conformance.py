"""The radical backend passes the whole conformance suite, on one pilot and those that its restarts need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from rhapsody.backends import RadicalExecutionBackend
from rhapsody.testing import BackendConformanceTests, die
from rhapsody_radical.description import has_mpi

pytestmark = [pytest.mark.engine("radical"), pytest.mark.slow, pytest.mark.timeout(600)]


class TestRadical(BackendConformanceTests):
    title = "radical"
    patience = 120.0
    many = 2000
    kill_worker = staticmethod(die)

    @pytest.fixture(scope="class")
    @classmethod
    def new_backend(cls) -> Callable[[], RadicalExecutionBackend]:
        return lambda: RadicalExecutionBackend(resources={"cores": 2})

    @pytest.mark.xfail(not has_mpi(), reason="RADICAL-Pilot starts ranks through mpirun or mpiexec")
    def test_declared_ranks_are_started(self, rhapsody_rig: Any) -> None:
        """Ranks are started where this machine has an MPI."""
        super().test_declared_ranks_are_started(rhapsody_rig)
