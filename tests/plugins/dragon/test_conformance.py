"""The Dragon backends pass the conformance suite."""

from __future__ import annotations

import os

import pytest
from rhapsody.errors import UnsupportedError
from rhapsody.testing import BackendConformanceTests, die

pytestmark = [pytest.mark.engine("dragon"), pytest.mark.usefixtures("dragon"), pytest.mark.timeout(240)]


too_few_cores_for_ranks = pytest.mark.xfail(
    (os.cpu_count() or 1) < 4,
    reason="Batch gives a rank one core, and takes half of the processors for cores: 2 ranks need 4 processors",
    raises=UnsupportedError,
    strict=True,
)


class TestV2(BackendConformanceTests):
    title = "dragon_v2"
    patience = 30.0
    kill_worker = staticmethod(die)

    @pytest.fixture(scope="class")
    @classmethod
    def new_backend(cls):
        from rhapsody_dragon.v2 import DragonExecutionBackendV2

        return lambda: DragonExecutionBackendV2({"slots": 2})


class TestV3(BackendConformanceTests):
    title = "dragon (V3)"
    patience = 30.0
    kill_worker = staticmethod(die)

    @pytest.fixture(scope="class")
    @classmethod
    def new_backend(cls):
        from rhapsody_dragon.v3 import DragonExecutionBackendV3

        return lambda: DragonExecutionBackendV3(num_workers=2)

    @too_few_cores_for_ranks
    def test_declared_ranks_are_started(self, rhapsody_rig):
        super().test_declared_ranks_are_started(rhapsody_rig)


class TestV1(BackendConformanceTests):
    title = "dragon_v1"
    patience = 30.0
    many = 40
    kill_worker = staticmethod(die)

    @pytest.fixture(scope="class")
    @classmethod
    def new_backend(cls):
        from rhapsody_dragon.v1 import DragonExecutionBackendV1

        return lambda: DragonExecutionBackendV1({"slots": 2})
