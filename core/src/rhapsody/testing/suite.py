"""`BackendConformanceTests`: what an author subclasses."""

from __future__ import annotations

from typing import Any

from rhapsody.testing._base import weakened
from rhapsody.testing.attempts import AttemptTests
from rhapsody.testing.cancel import CancelTests
from rhapsody.testing.events import EventTests
from rhapsody.testing.executables import ExecutableTests
from rhapsody.testing.functions import FunctionTests
from rhapsody.testing.killed import KilledTests
from rhapsody.testing.lifecycle import LifecycleTests, StartTests
from rhapsody.testing.losses import LossTests
from rhapsody.testing.refusals import RefusalTests
from rhapsody.testing.shared import SharedDataTests
from rhapsody.testing.shares import ShareTests
from rhapsody.testing.surroundings import SurroundingsTests
from rhapsody.testing.timeouts import TimeoutTests
from rhapsody.testing.travel import TravelTests
from rhapsody.testing.withdraw import WithdrawTests


class BackendConformanceTests(  # pytest collects the tests of the last base first
    KilledTests,
    LifecycleTests,
    LossTests,
    WithdrawTests,
    CancelTests,
    TimeoutTests,
    AttemptTests,
    EventTests,
    RefusalTests,
    ShareTests,
    SharedDataTests,
    ExecutableTests,
    SurroundingsTests,
    TravelTests,
    FunctionTests,
    StartTests,
):
    """The tests that a backend passes to be one.

    Subclass it under a name that pytest collects, with one fixture:

        @pytest.fixture(scope="class")
        def new_backend():
            return lambda: MyBackend()

        class TestMyBackend(BackendConformanceTests):
            kill_worker = staticmethod(die)

    (In a class of its own the fixture is a class method: `@classmethod` below `@pytest.fixture`.)

    The suite drives the backend through a session and its hooks only. Most tests share one session; those that need
    another start carry the marker `rhapsody_restart`, so that `-m "not rhapsody_restart"` is the quick round.

    What the backend declares in its `BackendCapabilities` is tested; what it does not declare must be refused, and
    that is tested too. A test of the suite can be neither removed nor replaced, unless the replacement is marked
    `pytest.mark.xfail(reason=...)`: then the reason is in the final table.

    Attributes:
        title: the name of the backend in the final table. Default: that of the class.
        patience: seconds to wait for something that a sound backend does at once; longer for a slow engine.
        many: how many tasks "ten thousand tasks" are.
        slots: how many tasks the backend runs at the same time, as `new_backend` makes it; its capacity is held against
            that. None: only against what it runs.
        shutdown_seconds: seconds that closing an idle session may take, beside twice the time that it took to start.
        kill_worker: a function which, run as a task, kills the worker that runs it; `rhapsody.testing.die` does
            by SIGKILL, as `staticmethod(die)`. None: the loss of workers is not tested.
        kill_engine: a function that is given the backend, and kills its engine, so that nothing runs any more; as
            `staticmethod(...)`. None: the loss of the engine is not tested.
        options: values of `backend_options` to try, by name.
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Refuse a subclass that removes or weakens tests.

        Raises:
            TypeError: naming them.
        """
        super().__init_subclass__(**arguments)
        names = weakened(cls, BackendConformanceTests)
        if names:
            raise TypeError(
                f"{cls.__name__} removes or replaces {', '.join(names)} of the conformance suite; a test that the "
                f"backend does not pass is overridden by one with pytest.mark.xfail(reason='...') that calls super()"
            )
