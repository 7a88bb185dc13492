"""A batch of tasks on its way to an engine, and the bytes that stand for it; `rhapsody.worker` is the far end."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from rhapsody.errors import ProtocolError, SerializationError
from rhapsody.model.kinds import Kind
from rhapsody.model.outcome import Outcome
from rhapsody.model.shared import sends
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.protocol.encoders import ENCODERS, Encoder, Environments
from rhapsody.protocol.encoding import cannot_travel, describe_exception
from rhapsody.protocol.frames import STARTED, frames
from rhapsody.protocol.outcomes import outcome_of
from rhapsody.protocol.shared import Stored
from rhapsody.protocol.store import SharedStore
from rhapsody.protocol.version import CORE_VERSION, WIRE_VERSION


class EventSink(Protocol):
    """Where outcomes are reported."""

    def put(self, events: Sequence[Outcome]) -> None:
        """Report outcomes."""


class BatchContext(Protocol):
    """What a batch needs to know of the backend that it goes to; `BackendContext` has it."""

    backend: str
    session: str
    sandbox_path: Path
    store: SharedStore | None

    @property
    def events(self) -> EventSink:
        """Where to report tasks that cannot be encoded."""


class TaskBatch:
    """Tasks that the engine takes together and runs one after the other.

    Attributes:
        uid: counts the batches of one backend, from 1.
        tasks: in the order in which they run.
        shipped: those of them that `encode` could pickle, in the order of their frames.
        gpus: by uid the numbers of the GPUs that a task was given, from 0, those of each rank together; of a backend
            whose `Capacity` has cores.
    """

    __slots__ = ("__weakref__", "_context", "_stored", "gpus", "shipped", "tasks", "uid")

    def __init__(
        self,
        uid: int,
        tasks: Sequence[ComputeTask],
        context: BatchContext,
        gpus: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    ) -> None:
        self.uid = uid
        self.tasks = tuple(tasks)
        self.shipped = self.tasks
        self.gpus = gpus
        self._context = context
        self._stored: Mapping[int, Stored] = {}

    def __len__(self) -> int:
        """Return the number of tasks."""
        return len(self.tasks)

    def __repr__(self) -> str:
        """Name the batch and its size."""
        return f"<TaskBatch {self.uid} of {len(self.tasks)} tasks for {self._context.backend}>"

    def store(self, values: Mapping[int, tuple[Any, float]]) -> None:
        """Store what is large of what the tasks take along, as `large_values` returns it. Blocks; core calls it."""
        assert self._context.store is not None
        self._stored = self._context.store.store(values.values(), self)

    def encode(self, environments: Mapping[str, Mapping[str, str]] | None = None) -> bytes:
        """Return the batch as bytes for `rhapsody.worker.run_batch`.

        A task that cannot be pickled is left out, and reported FAILED with SerializationError.

        Args:
            environments: variables that the backend sets for tasks, by uid: their devices, say. A task's own
                `environment` comes before them.
        """
        store = self._context.store
        with sends(self._stored, None if store is None else partial(store.reduce, self)):
            payload, refused = encode_tasks(self.tasks, self._context.session, self._context.sandbox_path, environments)
        if refused:
            gone = {task.uid for task, _ in refused}
            self.shipped = tuple(task for task in self.tasks if task.uid not in gone)
            self._context.events.put([self._refuse(task, error) for task, error in refused])
        return payload

    def decode(self, data: bytes | bytearray | memoryview, ran_on: str | None = None) -> list[Outcome]:
        """Read what `run_batch` returned or reported.

        Args:
            data: frames.
            ran_on: recorded as the tasks' place, where the frames have none.

        A frame of another wire version, or of an unknown kind, is FAILED with ProtocolError; so is every task of the
        batch where a frame of another wire version does not even say whose it is.
        """
        outcomes: list[Outcome] = []
        try:
            for frame in frames(data):
                if frame[1] == STARTED:
                    continue
                outcomes.append(outcome_of(frame, ran_on))  # those before the error are kept
        except ProtocolError as error:  # a task that has ended before this data keeps its end: the later one is dropped
            known = {outcome.uid for outcome in outcomes}
            outcomes += [
                Outcome(task.uid, TaskState.FAILED, exception=error) for task in self.shipped if task.uid not in known
            ]
        return outcomes

    def _refuse(self, task: ComputeTask, error: Exception) -> Outcome:
        described = describe_exception(error, "arguments")
        which = cannot_travel((task.function, task.args, dict(task.kwargs))) or "pass what can be pickled"
        problem = SerializationError(
            f"task {task.uid}: its function or arguments cannot travel to a worker of backend "
            f"{self._context.backend!r}: {described.type_name}: {described.message}; {which}, or use "
            f"a backend of threads",
            described.type_name,
            described.trace,
        )
        problem.__cause__ = error
        return Outcome(task.uid, TaskState.FAILED, exception=problem)


def encode_tasks(
    tasks: Sequence[ComputeTask], session: str, sandbox: Path, environments: Environments | None = None
) -> tuple[bytes, list[tuple[ComputeTask, Exception]]]:
    """Return the payload for tasks, and those left out with the reason why they could not be encoded."""
    encoders: dict[Kind, Encoder] = {}
    items: list[tuple[str, str, Any]] = []
    refused: list[tuple[ComputeTask, Exception]] = []
    kind: Kind | None = None
    name: str
    encode: Callable[[ComputeTask], Any]
    for task in tasks:
        try:
            if task.kind is not kind:
                following = task.kind
                if following not in encoders:
                    encoders[following] = ENCODERS[following](tasks, sandbox, environments or {})
                kind, name, encode = following, following.name, encoders[following].encode
            items.append((task.uid, name, encode(task)))
        except Exception as error:
            refused.append((task, error))
    common = {kind.name: (kind.module, encoder.common()) for kind, encoder in encoders.items()}
    payload = (WIRE_VERSION, CORE_VERSION, session, items, common)
    return pickle.dumps(payload, pickle.HIGHEST_PROTOCOL), refused
