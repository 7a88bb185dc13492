"""`flow.start_telemetry()` of radical.asyncflow records its workflow with RHAPSODY's telemetry."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rhapsody.backends import ConcurrentExecutionBackend

asyncflow = pytest.importorskip("radical.asyncflow", reason="radical.asyncflow is not installed")

pytestmark = [
    pytest.mark.usefixtures("leaves_nothing"),
    pytest.mark.filterwarnings("ignore:rhapsody.telemetry:DeprecationWarning"),  # the engine imports from there
]


async def test_telemetry_of_a_workflow(work_dir: Path) -> None:
    """A workflow's tasks are spans with links along its graph, counts, and events in order, also in the file."""
    backend = await ConcurrentExecutionBackend(max_workers=2)
    flow = await asyncflow.WorkflowEngine.create(backend=backend, work_dir=str(work_dir))
    telemetry = await flow.start_telemetry(resource_poll_interval=0.01, checkpoint_path=str(work_dir / "telemetry"))
    seen: list[Any] = []
    telemetry.subscribe(seen.append)

    @flow.function_task
    async def one() -> int:
        return 1

    @flow.function_task
    async def twice(value: int) -> int:
        return 2 * value

    @flow.function_task
    async def broken(value: int) -> None:
        raise ValueError(value)

    @flow.executable_task
    async def show(value: int) -> str:
        return f"echo {value}"

    @flow.block
    async def block() -> Any:
        return await show(1)

    async with flow.workflow_scope("the-workflow"):
        first = one()
        second = twice(first)
        assert await second == 2
    with pytest.raises(ValueError, match="1"):
        await broken(one())
    await block()
    await flow.shutdown()
    await telemetry.stop()

    counts = telemetry.summary()["tasks"]
    assert {name: counts[name] for name in ("submitted", "completed", "failed", "running")} == {
        "submitted": 5, "completed": 4, "failed": 1, "running": 0,
    }  # fmt: skip
    spans = telemetry.read_traces()
    of = {span.attributes["task_id"]: span for span in spans if span.name == "task" and "status" in span.attributes}
    (workflow,) = (span for span in spans if span.name == "workflow")
    (inner,) = (span for span in spans if span.name == "block")
    assert of[first.task["uid"]].parent == workflow.context
    assert of[first.task["uid"]].attributes["asyncflow.workflow_id"] == "the-workflow"
    assert [link.context for link in of[second.task["uid"]].links] == [of[first.task["uid"]].context]
    assert inner.context in [span.parent for span in of.values()]
    steps = [event.event_type for event in seen if event.task_id == second.task["uid"]]
    assert steps[:4] == ["TaskCreated", "asyncflow.TaskResolved", "TaskQueued", "TaskSubmitted"]
    assert steps[-1] == "TaskCompleted"
    assert telemetry.summary()["resources"][0]["memory_percent"] > 0
    (path,) = (work_dir / "telemetry").glob("*.telemetry.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    ends = Counter(line["event_type"] for line in lines if line["section"] == "event" and "duration_seconds" in line)
    assert ends == {"TaskCompleted": 4, "TaskFailed": 1, "SessionEnded": 1}
