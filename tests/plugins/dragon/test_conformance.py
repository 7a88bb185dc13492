"""The Dragon backends pass the conformance suite, whole, in each of their modes.

V1 and V2 are presets of the workers and the launcher of V3. `make test` holds V3 to the whole suite in both modes, and
V1 and V2 to what they have other settings for; the nightly round holds them to the whole of it. The table at the end
names what was not run.
"""

from __future__ import annotations

from typing import ClassVar

import pytest
from rhapsody.testing import BackendConformanceTests, die
from rhapsody.testing._base import SuitePart
from rhapsody.testing.cancel import CancelTests
from rhapsody.testing.functions import FunctionTests
from rhapsody.testing.lifecycle import StartTests
from rhapsody.testing.losses import LossTests
from rhapsody.testing.refusals import RefusalTests
from rhapsody.testing.timeouts import TimeoutTests

pytestmark = [pytest.mark.engine("dragon"), pytest.mark.usefixtures("dragon"), pytest.mark.timeout(240)]


class V2(SuitePart):
    title = "dragon_v2"
    patience = 30.0
    kill_worker = staticmethod(die)

    @pytest.fixture(scope="class")
    @classmethod
    def new_backend(cls):
        from rhapsody_dragon.v2 import DragonExecutionBackendV2

        return lambda: DragonExecutionBackendV2({"slots": 2})


class TestV2Settings(V2, RefusalTests, StartTests):
    """What it declares other than V3: neither ranks nor cores, GPUs or options."""


@pytest.mark.nightly
class TestV2(V2, BackendConformanceTests):
    """The whole suite."""


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


class V1(SuitePart):
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


class TestV1Settings(V1, LossTests, CancelTests, TimeoutTests, RefusalTests, FunctionTests, StartTests):
    """What it runs other than V3: each function is a job."""


@pytest.mark.nightly
class TestV1(V1, BackendConformanceTests):
    """The whole suite."""
