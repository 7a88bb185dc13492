"""Mistakes of an author are refused where they are made, in a sentence that says what to write instead."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from rhapsody.api import BackendStartError, ComputeTask, InvalidBackendError, Session
from rhapsody.plugin import Capacity, Outcome, Returned, TaskState, hookimpl

from ..puppet import Puppet, held, some

pytestmark = pytest.mark.usefixtures("leaves_nothing")


def test_unmarked_hook_is_refused() -> None:
    """A method that is named as a hook and lacks the marker is refused, also one over a marked method."""

    class Unmarked(Puppet):
        def rhapsody_submit(self, batch: Any) -> None: ...

    with pytest.raises(InvalidBackendError, match=r"has rhapsody_submit without the marker.*write @hookimpl above it"):
        Session(backends=[Unmarked()])


def test_unmarked_observer_hook_is_refused() -> None:
    """A method of an observer that is named as a hook and lacks the marker is refused."""

    class Unmarked:
        def rhapsody_session_opened(self) -> None: ...

    with pytest.raises(InvalidBackendError, match="has rhapsody_session_opened without the marker"):
        Session().observe(Unmarked())


@pytest.mark.parametrize(("field", "kind"), [("capabilities", "BackendCapabilities"), ("deadlines", "Deadlines")])
def test_declarations_have_a_type(field: str, kind: str) -> None:
    """Capabilities and deadlines that are a dict are refused where the backend is attached."""
    backend = type("Loose", (Puppet,), {field: {"functions": True}})()
    with pytest.raises(InvalidBackendError, match=rf"Loose.*{field} must be a {kind}, not .*{field} = {kind}\("):
        Session(backends=[backend])


async def test_capacity_must_be_a_capacity() -> None:
    """A number given to `set_capacity` is refused, and the start says so."""

    class Number(Puppet):
        @hookimpl
        async def rhapsody_init(self, context: Any) -> None:
            context.set_capacity(4)

    with pytest.raises(
        BackendStartError, match=r"takes a Capacity, not 4: context.set_capacity\(Capacity\(slots=4\)\)"
    ):
        await Session(backends=[Number()]).start()


@pytest.mark.parametrize("counts", [(2.5,), (-1,), (True,), (None,), (2, "3"), (2, 2, 0.5)])
def test_capacity_counts(counts: Any) -> None:
    """What is no count is refused where the Capacity is made."""
    with pytest.raises(InvalidBackendError, match="Capacity takes a whole number of"):
        Capacity(*counts)


async def test_events_must_be_a_list() -> None:
    """One event, put without a list around it, is refused; the backend is lost, since its tasks may never end."""
    backend = Puppet()
    async with Session(backends=[backend]) as session:
        tasks = some(2)
        futures = await session.submit_tasks(tasks)
        await held(backend, 2)
        outcome: Any = Outcome(tasks[0].uid, TaskState.DONE)
        with pytest.raises(InvalidBackendError, match=r"takes a list of events, not Outcome\("):
            backend.context.events.put(outcome)
        await asyncio.wait(futures)
        assert [str(task.exception)[:27] for task in tasks] == ["events.put takes a list of "] * 2


def test_state_must_be_a_state() -> None:
    """An outcome whose state is text is refused where it is made."""
    state: Any = "DONE"
    with pytest.raises(InvalidBackendError, match="Outcome of task a: its state must be a TaskState, not 'DONE'"):
        Outcome("a", state)


def test_returned_takes_a_list() -> None:
    """A single uid given to `Returned` is refused: its letters would be taken for uids, and its task never end."""
    with pytest.raises(InvalidBackendError, match=r"Returned takes a list of uids, not 'task\.1': Returned\(\[uid\]\)"):
        Returned("task.1")


def test_init_of_the_base_is_called() -> None:
    """A backend whose `__init__` forgets that of its base is refused with the line that is missing."""

    class Forgetful(Puppet):
        def __init__(self) -> None: ...

    with pytest.raises(InvalidBackendError, match=r"Forgetful.*must call super\(\).__init__\(name\)"):
        Session(backends=[Forgetful()])


async def test_validate_raises_unsupported() -> None:
    """What `rhapsody_validate` raises beside the errors of RHAPSODY is named as a fault of the backend."""

    class Broken(Puppet):
        @hookimpl
        def rhapsody_validate(self, tasks: Any) -> None:
            raise KeyError("queue")

    async with Session(backends=[Broken()]) as session:
        with pytest.raises(InvalidBackendError, match="rhapsody_validate of backend 'puppet' raised KeyError: 'queue'"):
            await session.submit_tasks([ComputeTask(executable="true")])
