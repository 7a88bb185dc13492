"""A backend on a spool queue, written against the public seam alone, passes the suite."""

from __future__ import annotations

import pytest
from rhapsody.testing import BackendConformanceTests, die

from .spool import SpoolExecutionBackend


class TestSpool(BackendConformanceTests):
    title = "spool (an author's)"
    slots = 2
    kill_worker = staticmethod(die)
    kill_engine = staticmethod(lambda backend: backend._queue.kill())
    options = {"nice": 3}  # noqa: RUF012  # as an author writes it

    @pytest.fixture(scope="class")
    @classmethod
    def new_backend(cls) -> object:
        return lambda: SpoolExecutionBackend(slots=2)
