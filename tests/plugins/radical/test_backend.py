"""What the backend gives to its pilot, and what it refuses, without a pilot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from rhapsody.api import ComputeTask, TaskState
from rhapsody.errors import SubmitError, UnsupportedError
from rhapsody.plugin import BackendContext, Outcome, TaskBatch
from rhapsody_radical import backend as backend_module
from rhapsody_radical import unit
from rhapsody_radical.backend import RadicalExecutionBackend
from rhapsody_radical.pilot import Listener
from rhapsody_radical.resources import PilotRequest


class Pilot:
    """Stands for the processes of a pilot: it is active at once, and runs nothing."""

    def __init__(self, request: PilotRequest, folder: Path, sid: str, listener: Listener) -> None:
        self.listener = listener
        self.submitted: list[Mapping[str, Any]] = []

    def start(self) -> None:
        self.listener.event({"event": "active"})

    def submit(self, descriptions: Sequence[Mapping[str, Any]]) -> None:
        self.submitted += descriptions

    def close(self) -> None:
        self.listener.gone()


class Attached:
    """A backend with such a pilot, in a session."""

    def __init__(self, folder: Path) -> None:
        self.backend = RadicalExecutionBackend(resources={"cores": 2})
        loop = asyncio.get_running_loop()
        self.context = BackendContext(backend="radical", session="s", work_dir=folder, loop=loop)

    async def start(self) -> None:
        await self.backend.rhapsody_init(self.context)
        self.context.events.take()

    async def submit(self, *tasks: ComputeTask) -> tuple[list[Mapping[str, Any]], list[Outcome]]:
        """Submit tasks as a batch. Returns what the pilot got, and what was reported."""
        pending = self.backend.rhapsody_submit(TaskBatch(1, tasks, self.context))
        if pending is not None:
            await pending
        pilot = self.backend._process
        assert isinstance(pilot, Pilot)
        return pilot.submitted, [event for event in self.context.events.take() if isinstance(event, Outcome)]


@pytest.fixture
def attached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Attached]:
    monkeypatch.setattr(backend_module, "PilotProcess", Pilot)
    return lambda: Attached(tmp_path)


class Unspeakable:
    def __str__(self) -> str:
        raise LookupError("no words")


async def test_a_second_run_of_a_session_does_not_meet_the_files_of_the_first(attached: Callable[[], Attached]) -> None:
    for _ in range(2):
        run = attached()
        await run.start()
        [described], _outcomes = await run.submit(ComputeTask(function=abs, args=(-7,)))
        folder = Path(described["executable"].split()[-1])
        assert (folder / unit.PAYLOAD).exists()
        await run.backend.rhapsody_shutdown(False)


async def test_nothing_is_left_of_units_once_the_pilot_is_closed(
    attached: Callable[[], Attached], tmp_path: Path
) -> None:
    run = attached()
    await run.start()
    await run.submit(ComputeTask(executable="cat", stdin="words"))
    await run.backend.rhapsody_shutdown(True)
    assert list(tmp_path.glob("s/radical/*")) == []


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (ComputeTask(executable="x", arguments=[Unspeakable()]), SubmitError),
        (ComputeTask(executable="x", arguments=["\udc80"]), UnsupportedError),
    ],
)
async def test_an_executable_that_cannot_be_described_fails_alone(
    attached: Callable[[], Attached], bad: ComputeTask, error: type[Exception]
) -> None:
    run = attached()
    await run.start()
    good = ComputeTask(executable="x", stdin="words")
    submitted, [outcome] = await run.submit(bad, good)
    assert [described["name"] for described in submitted] == [good.uid]
    assert (outcome.uid, outcome.state) == (bad.uid, TaskState.FAILED)
    assert isinstance(outcome.exception, error)
    assert bad.uid in str(outcome.exception)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (ComputeTask(executable="x", stdin="words"), "stdin cannot travel"),
        (ComputeTask(executable="x", capture_stdio=True), "capture_stdio"),
        (ComputeTask(executable="x", environment={"A-B": "c"}), "'A-B'"),
    ],
)
def test_what_a_pilot_out_of_reach_cannot_be_given_is_refused(task: ComputeTask, said: str) -> None:
    backend = RadicalExecutionBackend(resources={"cores": 2})
    backend.request = attrs.evolve(backend.request, shared_files=False)
    with pytest.raises(UnsupportedError, match=f"task {task.uid}.*{said}"):
        backend.rhapsody_validate([task])
