"""The Dragon backends pass the conformance suite, whole, in each of their modes."""

from __future__ import annotations

from typing import ClassVar

import pytest
from rhapsody.testing import BackendConformanceTests, die

pytestmark = [pytest.mark.engine("dragon"), pytest.mark.usefixtures("dragon"), pytest.mark.timeout(240)]


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
    options: ClassVar = {"timeout": 60, "pmi": None, "process_template": {}}

    @pytest.fixture(scope="class")
    @classmethod
    def new_backend(cls):
        from rhapsody_dragon.v3 import DragonExecutionBackendV3

        return lambda: DragonExecutionBackendV3(num_workers=2)


class TestV3Stream(BackendConformanceTests):
    title = "dragon (V3, stream)"
    patience = 30.0
    many = 1000
    kill_worker = staticmethod(die)
    options: ClassVar = {"timeout": 60, "pmi": None, "process_template": {}}

    @pytest.fixture(scope="class")
    @classmethod
    def new_backend(cls):
        from rhapsody_dragon.v3 import DragonExecutionBackendV3

        return lambda: DragonExecutionBackendV3(num_workers=2, disable_batch_submission=True)


class TestV1(BackendConformanceTests):
    title = "dragon_v1"
    patience = 30.0
    many = 40
    kill_worker = staticmethod(die)
    options: ClassVar = {"timeout": 60, "pmi": None}

    @pytest.fixture(scope="class")
    @classmethod
    def new_backend(cls):
        from rhapsody_dragon.v1 import DragonExecutionBackendV1

        return lambda: DragonExecutionBackendV1({"slots": 2})
