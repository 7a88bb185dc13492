"""`BackendConformanceTests`: what an author subclasses."""

from __future__ import annotations

from typing import Any

from ._base import weakened
from .cancel import CancelTests
from .events import EventTests
from .executables import ExecutableTests
from .functions import FunctionTests
from .lifecycle import LifecycleTests, LossTests, StartTests
from .refusals import RefusalTests


class BackendConformanceTests(  # pytest collects the tests of the last base first
    LifecycleTests,
    LossTests,
    CancelTests,
    EventTests,
    RefusalTests,
    ExecutableTests,
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
        kill_worker: a function which, run as a task, kills the worker that runs it; `rhapsody.testing.die` does
            by SIGKILL, as `staticmethod(die)`. None: the loss of workers is not tested.
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
