"""What mutants share: a sound backend that they change, and the suite of each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.plugin import (
    BackendContext,
    ComputeTask,
    Event,
    hookimpl,
)
from rhapsody.testing import BackendConformanceTests

LEFT: list[Any] = []  # what mutants leave behind, kept from the garbage collector


class Tampered:
    """A channel that changes what goes through it."""

    def __init__(self, channel: Any, tamper: Callable[[Event], Sequence[Event]]) -> None:
        self._channel = channel
        self._tamper = tamper

    def put(self, events: Sequence[Event], soon: bool = True) -> None:
        self._channel.put([changed for event in events for changed in self._tamper(event)], soon)

    def put_first(self, events: Sequence[Event]) -> None:
        self._channel.put_first([changed for event in events for changed in self._tamper(event)])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


class Mutant(ConcurrentExecutionBackend):
    """The local backend, sound as long as `tamper` changes nothing."""

    executor = "threads"
    gpus = 0

    def __init__(self) -> None:
        super().__init__(executor=self.executor, max_workers=2, gpus=self.gpus)

    def tamper(self, event: Event) -> Sequence[Event]:
        return [event]

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        context.events = Tampered(context.events, self.tamper)  # type: ignore[assignment]
        await super().rhapsody_init(context)

    def change(self, task: ComputeTask, **fields: Any) -> ComputeTask:
        """Change what a task asks for, behind the user's back."""
        for name, value in fields.items():
            setattr(task, name, value)
        return task


MUTANTS: list[type[BackendConformanceTests]] = []


def mutant(caught_by: str, says: str, **settings: Any) -> Callable[[type[Mutant]], type[Mutant]]:
    """Make the suite for a mutant, of which `test_mutants.py` runs the one test."""

    def decorate(backend: type[Mutant]) -> type[Mutant]:
        def new_backend(cls: type) -> Callable[[], Mutant]:
            return backend

        body = {
            "new_backend": pytest.fixture(scope="class")(classmethod(new_backend)),  # type: ignore[arg-type]  # pytest takes it
            "patience": 4.0,
            "caught_by": caught_by,
            "says": says,
            "__module__": backend.__module__,
            **settings,
        }
        name = f"Test{backend.__name__}"
        kind = type(name, (BackendConformanceTests,), body)
        setattr(sys.modules[backend.__module__], name, kind)  # where pytest collects it
        MUTANTS.append(kind)
        return backend

    return decorate
