"""The telemetry of a session: its spans, metrics, events and file."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from rhapsody.api import ComputeTask, Retry, Session, SessionError
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.observers.telemetry import spans as spans_module
from rhapsody.observers.telemetry.observer import Telemetry
from rhapsody.observers.telemetry.usage import Usage

from .otlp import receiver


def same(value: Any) -> Any:
    return value


def here() -> tuple[str, str]:
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


async def here_too() -> tuple[str, str]:
    await asyncio.sleep(0)
    return here()


def ids(span: Any) -> tuple[str, str]:
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


def values(metrics: Any) -> dict[str, list[Any]]:
    scopes = [scope for each in metrics.resource_metrics for scope in each.scope_metrics]
    return {metric.name: list(metric.data.data_points) for scope in scopes for metric in scope.metrics}


async def run(tasks: list[ComputeTask], session: Session | None = None, **options: Any) -> Any:
    async with session or Session() as session:
        telemetry = await session.start_telemetry(**options)
        await session.submit_tasks(tasks)
        await session.wait_tasks()
    return telemetry


async def test_spans_of_a_session() -> None:
    """A session, its batches and its tasks are spans; attempts are events, and dependencies are links."""
    parent = ComputeTask(function=same, args=(1,))
    child = ComputeTask(function=same, args=(parent,))
    failing = ComputeTask(executable="false", retries=Retry(attempts=3))
    telemetry = await run([parent, child, failing])
    spans = telemetry.read_traces()
    (session,) = (span for span in spans if span.name == "session")
    of = {span.attributes["task_id"]: span for span in spans if span.name == "task"}
    batches = {ids(span): span for span in spans if span.name == "batch"}
    assert {span.parent.span_id for span in (*of.values(), *batches.values())} == {session.context.span_id}
    links = {ids(link) for link in of[child.uid].links}
    assert ids(of[parent.uid]) in links
    assert links & batches.keys()
    attempts = [(event.attributes["attempt"], event.name) for event in of[failing.uid].events]
    assert attempts == [(1, "attempt"), (2, "attempt"), (3, "attempt")]
    assert not of[failing.uid].status.is_ok
    assert of[failing.uid].attributes["error_type"] == "TaskExecutionError"
    assert sum(span.attributes["tasks"] for span in batches.values()) == 5
    assert child.started_at is not None
    assert of[child.uid].events[0].timestamp == int(child.started_at * 1e9)


async def test_counts_of_a_session() -> None:
    """Metrics count tasks by backend and kind of error, and hold no uid; the summary says the same."""
    gone = ComputeTask(function=same, args=(1,), backend="two")
    tasks = [*(ComputeTask(function=same, args=(1,)) for _ in range(20)), ComputeTask(executable="false"), gone]
    backends = [ConcurrentExecutionBackend(name="one"), ConcurrentExecutionBackend(name="two")]
    telemetry = await run(tasks, Session(backends=backends))
    points = values(telemetry.read_metrics())
    assert {(p.attributes["backend"], p.value) for p in points["tasks_completed"]} == {("one", 20), ("two", 1)}
    (failed,) = points["tasks_failed"]
    assert failed.attributes == {"backend": "one", "error.type": "TaskExecutionError"}
    assert sum(point.count for point in points["task_duration_seconds"]) == 22
    assert all(point.value == 0 for point in points["tasks_running"])
    summary = telemetry.summary()
    assert summary["tasks"] == {
        "submitted": 22, "started": 22, "completed": 21, "failed": 1, "canceled": 0, "running": 0,
    }  # fmt: skip
    assert 0 < summary["duration"]["min_seconds"] <= summary["duration"]["mean_seconds"]
    assert len(telemetry.task_spans()) == 22
    assert {span["status"] for span in telemetry.task_spans()} == {"completed", "failed"}


async def test_trace_goes_on_in_workers() -> None:
    """Functions in threads and processes, and executables, find the span of their task."""
    kinds = ("threads", "processes")
    backends = [ConcurrentExecutionBackend(name=kind, executor=kind, max_workers=1) for kind in kinds]
    calls = [ComputeTask(function=call, backend=kind) for call in (here, here_too) for kind in kinds]
    line = "printf %s $TRACEPARENT"
    lines = [ComputeTask(executable=line, shell=True, backend=kind) for kind in kinds]
    telemetry = await run([*calls, *lines], Session(backends=backends))
    of = {span.attributes["task_id"]: ids(span) for span in telemetry.read_traces() if span.name == "task"}
    assert [task.return_value for task in calls] == [of[task.uid] for task in calls]
    assert [task.stdout for task in lines] == [f"00-{'-'.join(of[task.uid])}-01" for task in lines]
    async with Session() as other:  # which has no telemetry
        task = ComputeTask(executable=line, shell=True)
        await other.submit_tasks([task])
        assert (await task).stdout == ""


async def test_span_of_the_submitter() -> None:
    """A task submitted within a span is its child, or linked to it where the span is of another trace."""
    tracer = TracerProvider().get_tracer("the user's")
    async with Session() as session:
        telemetry = await session.start_telemetry()
        with telemetry.span_scope("workflow", {"id": 1}):
            inner = ComputeTask(function=same, args=(1,))
            await session.submit_tasks([inner])
        with tracer.start_as_current_span("elsewhere") as elsewhere:
            outer = ComputeTask(function=same, args=(1,))
            await session.submit_tasks([outer])
    spans = telemetry.read_traces()
    of = {span.attributes.get("task_id", span.name): span for span in spans}
    assert of[inner.uid].parent == of["workflow"].context
    assert of["workflow"].parent == of["session"].context
    assert elsewhere.get_span_context() in [link.context for link in of[outer.uid].links]


async def test_events_and_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Subscribers and the file have each step of each task; a subscriber that raises is one warning."""
    seen: list[Any] = []
    later: list[str] = []

    async def slowly(event: Any) -> None:
        await asyncio.sleep(0)
        later.append(event.event_type)

    def broken(event: Any) -> None:
        raise RuntimeError("subscriber")

    task = ComputeTask(function=same, args=(1,))
    async with Session(uid="a b") as session:
        telemetry = await session.start_telemetry(checkpoint_path=tmp_path, checkpoint_interval=0.01)
        for subscriber in (broken, seen.append, slowly):
            telemetry.subscribe(subscriber)
        await session.submit_tasks([task])
        await task
        await telemetry.stop()
    steps = ["TaskCreated", "TaskSubmitted", "TaskQueued", "TaskStarted", "TaskCompleted"]
    assert [event.event_type for event in seen if event.task_id == task.uid] == steps
    assert {"SessionStarted", "ResourceUpdate", "SessionEnded"} <= {event.event_type for event in seen}
    assert later == [event.event_type for event in seen]
    assert [record.message for record in caplog.records].count("subscriber_failed") <= 1
    assert "RuntimeError: subscriber" in caplog.text
    (path,) = tmp_path.glob("a%20b.*.telemetry.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event_type"] for line in lines if line["section"] == "event" and line["task_id"]] == steps
    (span,) = (line for line in lines if line["section"] == "span" and line["name"] == "task")
    (ended,) = (line for line in lines if line.get("event_type") == "TaskCompleted")
    assert ended["span_id"] == span["span_id"]
    assert ended["duration_seconds"] >= 0
    assert [line for line in lines if line["section"] == "metric"][-1]["tasks_completed"] == 1


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tasks end, the latest spans are kept, and nothing of the others."""
    monkeypatch.setattr(spans_module, "KEPT", 100)
    async with Session() as session:
        telemetry = await session.start_telemetry()
        (observer,) = (each for each in session._observers._observers if isinstance(each, Telemetry))
        sizes = []
        for _ in range(3):
            await session.submit_tasks([ComputeTask(function=same, args=(1,)) for _ in range(1000)])
            await session.wait_tasks()
            assert sum(len(points) for points in values(telemetry.read_metrics()).values()) < 12
            held = [observer._parents, observer._links, observer._batches, telemetry._waiting, telemetry.spans._kept]
            sizes.append([len(each) for each in held])
    assert sizes == [[0, 0, 0, 0, 100]] * 3
    assert telemetry.task_count()["completed"] == 3000


async def test_receiver_takes_it() -> None:
    """Spans and metrics reach a receiver of OpenTelemetry's protocol by its own exporters, also of a failed task."""
    with receiver() as (address, received):
        spans = BatchSpanProcessor(OTLPSpanExporter(f"{address}/v1/traces", compression=Compression.NoCompression))
        exporter = OTLPMetricExporter(f"{address}/v1/metrics", compression=Compression.NoCompression)
        metrics = PeriodicExportingMetricReader(exporter, export_interval_millis=600_000)
        tasks = [ComputeTask(function=same, args=(1,)), ComputeTask(executable="false")]
        await run(
            tasks, span_processors=[spans], metric_readers=[metrics], resource=Resource({"service.name": "ensemble"})
        )
    resources = [each for request in received for each in getattr(request, "resource_spans", ())]
    assert {a.value.string_value for each in resources for a in each.resource.attributes} >= {"ensemble"}
    found = [span for each in resources for scope in each.scope_spans for span in scope.spans]
    assert sorted({span.name for span in found}) == ["batch", "session", "task"]
    assert len([span for span in found if span.name == "task"]) == 2
    counted = [each for request in received for each in getattr(request, "resource_metrics", ())]
    names = {metric.name for each in counted for scope in each.scope_metrics for metric in scope.metrics}
    assert {"tasks_completed", "tasks_failed", "task_duration_seconds"} <= names


def test_gpus_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each GPU that nvidia-ml-py finds has its use; one that cannot be asked is left out."""

    class Trouble(Exception):
        pass

    def utilization(gpu: int) -> Any:
        if gpu == 1:
            raise Trouble
        return SimpleNamespace(gpu=70)

    nvml = SimpleNamespace(
        NVMLError=Trouble, nvmlInit=lambda: None, nvmlShutdown=lambda: None, nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=int, nvmlDeviceGetUtilizationRates=utilization,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    usage = Usage()
    machine, gpu = usage.read("session", "local")
    usage.close()
    assert machine.resource_scope == "per_node"
    assert machine.memory_percent is not None
    assert machine.memory_percent > 0
    assert (gpu.resource_scope, gpu.gpu_id, gpu.gpu_percent) == ("per_gpu", 0, 70)


async def test_once_for_a_session() -> None:
    """A session has telemetry once; asking for what was not started, or for a file that cannot be, is a clear error."""
    async with Session() as session:
        with pytest.raises(SessionError, match=r"await session.start_telemetry\(\) first"):
            session.get_telemetry()
        with pytest.raises(SessionError, match="choose another folder"):
            await session.start_telemetry(checkpoint_path="/dev/null/x")
        telemetry = await session.start_telemetry()
        assert session.get_telemetry() is telemetry
        with pytest.raises(SessionError, match="has telemetry already"):
            await session.start_telemetry()


def test_opentelemetry_only_where_asked() -> None:
    """A session without telemetry imports nothing of OpenTelemetry; asking without it names what to install."""
    script = """
import asyncio, sys
from rhapsody.api import ComputeTask, Session, SessionError
async def main():
    async with Session() as session:
        await session.submit_tasks([ComputeTask(function=int)])
        await session.wait_tasks()
        assert not [name for name in sys.modules if name.partition(".")[0] in ("opentelemetry", "psutil")]
        sys.modules["opentelemetry"] = None
        try:
            await session.start_telemetry()
        except SessionError as error:
            print(error)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "pip install 'rhapsody-core[telemetry]'" in done.stdout, done.stderr


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_memory_of_a_million_tasks() -> None:
    """Between the 100,000th and the millionth task, memory does not grow."""
    script = """
import asyncio, psutil
from rhapsody.api import ComputeTask, Session
async def main():
    used = psutil.Process().memory_info
    async with Session() as session:
        telemetry = await session.start_telemetry()
        telemetry.subscribe(lambda event: None)
        await session.submit_tasks(ComputeTask(function=int) for _ in range(100_000))
        await session.wait_tasks()
        before = used().rss
        await session.submit_tasks(ComputeTask(function=int) for _ in range(900_000))
        await session.wait_tasks()
        print(telemetry.task_count()["completed"], (used().rss - before) / 2**20)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=580, check=True)
    count, grown = done.stdout.split()
    assert int(count) == 1_000_000
    assert float(grown) < 30
