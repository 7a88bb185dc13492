"""The local backend, in each of its forms, passes the conformance suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pytest
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.testing import BackendConformanceTests, die

New = Callable[[], ConcurrentExecutionBackend]


class TestThreads(BackendConformanceTests):
    title = "concurrent (threads)"

    @pytest.fixture(scope="class")
    @classmethod
    def new_backend(cls) -> New:
        return lambda: ConcurrentExecutionBackend(max_workers=3, gpus=2)


class TestProcesses(BackendConformanceTests):
    title = "concurrent (processes)"
    kill_worker = staticmethod(die)

    @pytest.fixture(scope="class")
    @classmethod
    def new_backend(cls) -> New:
        return lambda: ConcurrentExecutionBackend(executor="processes", max_workers=2, gpus=2)


class TestThreadPoolExecutor(BackendConformanceTests):
    title = "concurrent (a ThreadPoolExecutor)"

    @pytest.fixture(scope="class")
    @classmethod
    def new_backend(cls) -> Iterator[New]:
        with ThreadPoolExecutor(3) as one, ThreadPoolExecutor(3) as other:
            pools = [one, other]
            yield lambda: ConcurrentExecutionBackend(executor=pools.pop(0) if pools else one)


class TestProcessPoolExecutor(BackendConformanceTests):
    title = "concurrent (a ProcessPoolExecutor)"

    @pytest.fixture(scope="class")
    @classmethod
    def new_backend(cls) -> Iterator[New]:
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            yield lambda: ConcurrentExecutionBackend(executor=pool)
