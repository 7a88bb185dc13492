"""The judgement of a batch whose worker is gone."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest
from rhapsody.api import ComputeTask, TaskState
from rhapsody.errors import WorkerLostError
from rhapsody.plugin import BackendContext, Event, Outcome, Returned, TaskBatch, settle_lost

UIDS = "abcd"


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> TaskBatch:
    folder: Path = tmp_path_factory.mktemp("loss")
    loop = asyncio.new_event_loop()
    try:
        context = BackendContext(backend="b", session="s", work_dir=folder, loop=loop)
        return TaskBatch(1, [ComputeTask(function=print, uid=uid) for uid in UIDS], context)
    finally:
        loop.close()


def outcomes(events: list[Event]) -> dict[str, Outcome]:
    return {event.uid: event for event in events if isinstance(event, Outcome)}


def returned(events: list[Event]) -> list[str]:
    return [uid for event in events if isinstance(event, Returned) for uid in event.uids]


def test_lost_worker_fails_only_running_task(batch: TaskBatch) -> None:
    """A task that ended keeps its result, the one that ran fails, a canceled one is CANCELED, the rest go back."""
    events = settle_lost(batch, {"a"}, {"b"}, {"c"}, why="it died")
    ends = outcomes(events)
    assert {uid: end.state for uid, end in ends.items()} == {"b": TaskState.FAILED, "c": TaskState.CANCELED}
    assert isinstance(ends["b"].exception, WorkerLostError)
    assert str(ends["b"].exception) == "task b: it died"
    assert returned(events) == ["d"]


def test_unknown_progress_fails_all(batch: TaskBatch) -> None:
    """Where nothing is known, each task may have begun, and none runs twice."""
    events = settle_lost(batch, {"a"}, None, (), why="it died")
    assert {uid: end.state for uid, end in outcomes(events).items()} == dict.fromkeys("bcd", TaskState.FAILED)
    assert returned(events) == []


SETS = [set(uids) for count in range(4) for uids in itertools.combinations("abc", count)]


def test_each_task_ends_once(batch: TaskBatch) -> None:
    """Whatever is known, a task that has not ended gets one end or goes back, and one that began never goes back."""
    for ended, begun, canceled in itertools.product(SETS, repeat=3):
        events = settle_lost(batch, ended, begun, canceled, why="it died")
        uids = [*outcomes(events), *returned(events)]
        assert sorted(uids) == sorted(set(UIDS) - ended)
        assert not set(returned(events)) & (begun | canceled)
