"""What travels carries a version, and both ends name theirs where they differ."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import attrs
import pytest
from rhapsody.api import ComputeTask, ProtocolError
from rhapsody.plugin import Outcome, TaskBatch
from rhapsody.protocol.version import CORE_VERSION, WIRE_VERSION
from rhapsody.worker import encode_frame, frames, run_batch

OTHER = WIRE_VERSION + 6


class _Events:
    def put(self, events: Any) -> None:
        raise AssertionError(f"nothing is reported here: {events}")


@attrs.define
class _Context:
    sandbox_path: Path
    backend: str = "engine"
    session: str = "session"
    events: Any = attrs.field(factory=_Events)
    store: Any = None


@pytest.fixture
def batch(tmp_path: Path) -> TaskBatch:
    """Two tasks on their way."""
    tasks = [ComputeTask(function=pow, args=(2, 3), uid="a"), ComputeTask(executable="true", uid="b")]
    return TaskBatch(1, tasks, _Context(tmp_path))


def _reframed(data: bytes, version: int) -> bytes:
    """Return one frame as a worker of another version writes it."""
    return data[:8] + struct.pack("<H", version) + data[10:]


def _errors(outcomes: list[Outcome]) -> list[tuple[str, str, type[Any]]]:
    return [(outcome.uid, outcome.state.value, type(outcome.exception)) for outcome in outcomes]


def _tampered(batch: TaskBatch, version: object) -> bytes:
    _, *fields = pickle.loads(batch.encode())
    return pickle.dumps((version, "9.8.7", *fields[1:]))


def test_same_version_runs(batch: TaskBatch) -> None:
    """A batch and frames of the same version pass."""
    outcomes = batch.decode(run_batch(batch.encode()))
    assert [(outcome.state.value, outcome.return_value, outcome.exit_code) for outcome in outcomes] == [
        ("DONE", 8, None),
        ("DONE", None, 0),
    ]


def test_foreign_batch_fails_each_task(batch: TaskBatch) -> None:
    """A worker runs no task of a batch of another wire version; each fails, and the error names both versions."""
    outcomes = batch.decode(run_batch(_tampered(batch, OTHER)))
    assert _errors(outcomes) == [("a", "FAILED", ProtocolError), ("b", "FAILED", ProtocolError)]
    text = str(outcomes[0].exception)
    assert f"wire version {OTHER} (rhapsody-core 9.8.7)" in text
    assert f"wire version {WIRE_VERSION} (rhapsody-core {CORE_VERSION})" in text


def test_foreign_batch_asks_for_claims(batch: TaskBatch) -> None:
    """A task that the engine does not let begin has no frame, whatever the version."""
    outcomes = batch.decode(run_batch(_tampered(batch, OTHER), claim=lambda uid: uid != "a"))
    assert _errors(outcomes) == [("b", "FAILED", ProtocolError)]


@pytest.mark.parametrize("payload", [("session", [], [], []), (OTHER, "9.8.7", "session", 3), (OTHER, "9.8.7")])
def test_unreadable_batch_raises(payload: tuple[Any, ...]) -> None:
    """A batch that does not even say which tasks it has is a ProtocolError of the worker."""
    with pytest.raises(ProtocolError, match=f"this worker reads wire version {WIRE_VERSION} "):
        run_batch(pickle.dumps(payload))


def test_foreign_frame_fails_its_task(batch: TaskBatch) -> None:
    """A frame of another wire version fails its task, and the ones beside it are read."""
    ours, theirs = encode_frame(("a", "value", 8, 1.0, 2.0, "")), encode_frame(("b", "value", 9, 1.0, 2.0, ""))
    outcomes = batch.decode(_reframed(theirs, OTHER) + ours)
    assert _errors(outcomes) == [("b", "FAILED", ProtocolError), ("a", "DONE", type(None))]
    text = str(outcomes[0].exception)
    assert f"wire version {OTHER}" in text
    assert f"wire version {WIRE_VERSION} (rhapsody-core {CORE_VERSION})" in text


def test_frame_without_version_fails_its_task(batch: TaskBatch) -> None:
    """A frame that begins with its pickle, as before there were versions, fails its task."""
    data = pickle.dumps(("a", "value", 8, 1.0, 2.0, ""), pickle.HIGHEST_PROTOCOL)
    outcomes = batch.decode(struct.pack("<Q", len(data)) + data)
    assert _errors(outcomes) == [("a", "FAILED", ProtocolError)]
    assert "wire version none" in str(outcomes[0].exception)


def test_unreadable_frame_fails_the_batch(batch: TaskBatch) -> None:
    """A frame of another wire version that does not say whose it is fails each task that has not ended."""
    ours, theirs = encode_frame(("a", "value", 8, 1.0, 2.0, "")), struct.pack("<QH", 6, OTHER) + b"what"
    outcomes = batch.decode(ours + theirs)
    assert _errors(outcomes) == [("a", "DONE", type(None)), ("b", "FAILED", ProtocolError)]
    with pytest.raises(ProtocolError, match=f"wire version {OTHER}, .* wire version {WIRE_VERSION} "):
        list(frames(theirs))


def test_unknown_frame_is_never_done(batch: TaskBatch) -> None:
    """A frame of a kind that the program does not know fails its task."""
    (outcome,) = batch.decode(encode_frame(("a", "streamed", 8, 1.0, 2.0, "host:1")))
    assert _errors([outcome]) == [("a", "FAILED", ProtocolError)]
    assert f"wire version {WIRE_VERSION} and the kind 'streamed'" in str(outcome.exception)
    assert (outcome.started_at, outcome.ended_at, outcome.ran_on) == (1.0, 2.0, "host:1")


@pytest.mark.parametrize("module", [None, "no_such_module"])
def test_unknown_kind_fails_its_task(batch: TaskBatch, module: str | None) -> None:
    """A worker fails a task of a kind that it does not know, and runs the others."""
    version, _, session, items, common = pickle.loads(batch.encode())
    items = [*items, ("c", "service", "abc")]
    data = run_batch(pickle.dumps((version, "9.8.7", session, items, {**common, "service": (module, None)})))
    assert [frame[:2] for frame in frames(data)] == [("a", "value"), ("b", "finished"), ("c", "raised")]
    *_, outcome = batch.decode(data)
    assert _errors([outcome]) == [("c", "FAILED", ProtocolError)]
    assert f"rhapsody-core 9.8.7 sent a task of kind 'service', which this worker, wire version {WIRE_VERSION}" in str(
        outcome.exception
    )


def test_unfinished_frame_waits() -> None:
    """A frame that has not wholly arrived is left out."""
    data = encode_frame(("a", "value", 8, 1.0, 2.0, ""))
    for end in (5, 9, 10, len(data) - 1):
        assert list(frames(data[:end])) == []
    assert len(list(frames(data + data[:9]))) == 1
