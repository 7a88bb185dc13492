"""What the backend gives to its pilot, and what it refuses, without a pilot."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from rhapsody import __version__
from rhapsody.api import ComputeTask, TaskState
from rhapsody.errors import SubmitError, UnsupportedError
from rhapsody.plugin import BackendContext, Outcome, TaskBatch
from rhapsody_radical import backend as backend_module
from rhapsody_radical import batch_main
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


async def test_second_run_has_its_own_files(attached: Callable[[], Attached]) -> None:
    """A second run of a session does not meet the files of the first."""
    for _ in range(2):
        run = attached()
        await run.start()
        [described], _outcomes = await run.submit(ComputeTask(function=abs, args=(-7,)))
        folder = Path(described["executable"].split()[-1])
        assert (folder / batch_main.PAYLOAD).exists()
        await run.backend.rhapsody_shutdown(False)


async def test_another_core_is_warned_of_once(attached: Callable[[], Attached]) -> None:
    """Functions that ran with another rhapsody-core are warned of once, with both versions."""
    run = attached()
    await run.start()
    for number in range(2):
        described, _outcomes = await run.submit(ComputeTask(function=abs, args=(-7,)))
        (Path(described[-1]["executable"].split()[-1]) / batch_main.OTHER_CORE).write_text("9.8.7")
        change = [described[-1]["uid"], "DONE", {}]
        run.backend._on_event({"event": "tasks", "at": 1.0, "tasks": [change]})
        if number == 0:
            with pytest.warns(
                RuntimeWarning, match=f"rhapsody-core {re.escape(__version__)} here and 9.8.7 on the pilot"
            ):
                await asyncio.sleep(0)
    await asyncio.sleep(0)  # a second warning would be an error
    await run.backend.rhapsody_shutdown(False)


async def test_closed_pilot_leaves_no_files(attached: Callable[[], Attached], tmp_path: Path) -> None:
    """Nothing is left of batches once the pilot is closed."""
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
async def test_indescribable_task_fails_alone(
    attached: Callable[[], Attached], bad: ComputeTask, error: type[Exception]
) -> None:
    """An executable that cannot be described fails alone."""
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
        (ComputeTask(executable="x", capture_stdio=True), "files of stdout and stderr"),
        (ComputeTask(executable="x", environment={"A-B": "c"}), "'A-B'"),
    ],
)
def test_unreachable_pilot_refuses(task: ComputeTask, said: str) -> None:
    """What a pilot without shared files cannot be given is refused."""
    backend = RadicalExecutionBackend(resources={"cores": 2})
    backend.request = attrs.evolve(backend.request, shared_files=False)
    with pytest.raises(UnsupportedError, match=f"task {task.uid}.*{said}"):
        backend.rhapsody_validate([task])


@pytest.mark.parametrize(("resource", "links"), [("local.localhost", True), ("access.bridges2", False)])
def test_files_are_linked_where_visible(resource: str, links: bool) -> None:
    """It declares that it links files for workflow engines where this program sees the pilot's."""
    given = {"resource": resource, "cores": 1, "access_schema": "local" if links else "ssh"}
    backend = RadicalExecutionBackend(given)
    assert backend.supports_implicit_data_linking is links
    assert backend.supports_explicit_data_linking is links


@pytest.mark.nightly
@pytest.mark.engine("radical")
async def test_files_follow_a_workflow(work_dir: Path) -> None:
    """A task of a workflow finds the files of the task before it in its own folder."""
    asyncflow = pytest.importorskip("radical.asyncflow", reason="radical.asyncflow is not installed")
    backend = await RadicalExecutionBackend({"cores": 1, "runtime": 10})
    flow = await asyncflow.WorkflowEngine.create(backend=backend, uid="flow", work_dir=str(work_dir))

    @flow.executable_task
    async def leave() -> str:
        return "touch left"

    @flow.executable_task
    async def names(*_: Any) -> str:
        return "ls"

    assert (await names(leave())).split() == ["left"]
    await flow.shutdown()
