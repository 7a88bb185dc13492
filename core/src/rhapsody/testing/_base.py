"""What the parts of the suite have in common: its settings, and the decorator of its tests."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, TypeVar

import pytest

from rhapsody.testing.ledger import ConformanceError
from rhapsody.testing.rig import Rig

__tracebackhide__ = True  # frames of the suite
TestT = TypeVar("TestT", bound="SuitePart")
AsyncTest = Callable[[TestT, Rig], Awaitable[None]]
Test = Callable[[TestT, Rig], None]


class SuitePart:
    """The ground that `BackendConformanceTests` stands on: its settings, which are documented there."""

    title: ClassVar[str] = ""
    patience: ClassVar[float] = 60.0
    many: ClassVar[int] = 10_000
    slots: ClassVar[int | None] = None
    shutdown_seconds: ClassVar[float] = 10.0
    kill_worker: ClassVar[Callable[[], Any] | None] = None
    kill_engine: ClassVar[Any] = None  # a function of the backend; as a Callable it would be taken for a method
    options: ClassVar[dict[str, Any]] = {}


def conforms(
    proves: str, *, needs: str = "", lacks: str = "", restarts: bool = False
) -> Callable[[AsyncTest[TestT]], Test[TestT]]:
    """Make an async method a test of the suite.

    Args:
        proves: the line of the final table that the test belongs to.
        needs: capabilities without which there is nothing to test, with spaces between.
        lacks: a capability; the test is for backends that do not declare it.
        restarts: whether the test starts an engine of its own.
    """

    def decorate(test: AsyncTest[TestT]) -> Test[TestT]:
        def run(self: TestT, rhapsody_rig: Rig) -> None:
            rig = rhapsody_rig
            if rig.lost:
                pytest.skip(rig.lost)
            can = rig.capabilities
            absent = [name for name in needs.split() if not getattr(can, name)]
            if absent:
                pytest.skip(f"the backend does not declare {' and '.join(absent)}")
            if lacks and getattr(can, lacks):
                pytest.skip(f"the backend declares {lacks}")
            failed = True
            try:
                try:
                    rig.run(_awaited(test(self, rig)))
                    failed = False
                finally:
                    rig.run(rig.after_test(failed, test.__name__))
            except ConformanceError as error:
                raise error.with_traceback(None) from error.__cause__  # its sentence is for the author, not our frames

        # Not functools.wraps: its __wrapped__ would show plugins for async tests a coroutine function to run.
        run.__name__, run.__qualname__, run.__doc__ = test.__name__, test.__qualname__, test.__doc__
        run.__module__ = test.__module__
        run.__dict__["_rhapsody_conformance"] = {"proves": proves, "refuses": bool(lacks)}
        return pytest.mark.rhapsody_restart(run) if restarts else run

    return decorate


async def _awaited(work: Awaitable[None]) -> None:
    await work


def weakened(kind: type, suite: type) -> list[str]:
    """Return the tests of the suite that a subclass removes, or replaces without saying why in an xfail."""
    problems = []
    for name in dir(suite):
        if not name.startswith("test_"):
            continue
        original, now = inspect.getattr_static(suite, name), inspect.getattr_static(kind, name, None)
        if now is original:
            continue
        marks = getattr(now, "pytestmark", [])
        if not any(mark.name == "xfail" and mark.kwargs.get("reason") for mark in marks):
            problems.append(name)
    return problems
