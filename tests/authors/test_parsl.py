"""A backend on Parsl's HighThroughputExecutor, written against the public seam alone, passes the suite."""

from __future__ import annotations

import pytest
from rhapsody.testing import BackendConformanceTests, die

pytest.importorskip("parsl", reason="Parsl is not installed")
from .parsl_htex import ParslExecutionBackend  # it imports Parsl


class TestParsl(BackendConformanceTests):
    title = "parsl (an author's)"
    slots = 2
    kill_worker = staticmethod(die)
    kill_engine = staticmethod(lambda backend: backend._engine.interchange_proc.kill())
    options = {"priority": 3}  # noqa: RUF012  # as an author writes it

    @pytest.fixture(scope="class")
    @classmethod
    def new_backend(cls) -> object:
        return lambda: ParslExecutionBackend(workers=2)
