"""What was measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any, Self

import attrs


@attrs.frozen
class Spread:
    """A figure of several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Return the median and the range of values."""
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[0], ordered[-1])


@attrs.frozen
class Point:
    """How much of its slots' time an engine made useful, with tasks of one length."""

    seconds: float
    efficiency: float


@attrs.frozen(kw_only=True)
class Comparison:
    """A backend, and the engine under it driven by its own interface, one task at a time.

    Attributes:
        backend: as the user named it.
        raw: how the engine was driven; None if there is nothing to compare with.
        kind: of tasks.
        slots: tasks at the same time.
        tasks, raw_tasks: in each round.
        rounds: how many.
        task_seconds, raw_task_seconds: wall seconds of a round for each task in it, from describing it to its result.
        cpu_seconds, raw_cpu_seconds: likewise, of user and system time in this process.
        ratio: ours over the engine's, by rounds.
        latency, raw_latency: seconds from submitting one task on the idle engine to its result: p50 and p99.
        curve, raw_curve: efficiency by task length, longest first.
        metg, raw_metg: METG(50%): the task length in seconds with which half of the slots' time is useful.
        bytes_per_task: of this process's memory, for each task that waits, its future included.
    """

    backend: str
    raw: str | None
    kind: str
    slots: int
    tasks: int
    raw_tasks: int
    rounds: int
    task_seconds: Spread
    cpu_seconds: Spread
    raw_task_seconds: Spread | None = None
    raw_cpu_seconds: Spread | None = None
    ratio: Spread | None = None
    latency: tuple[float, float] | None = None
    raw_latency: tuple[float, float] | None = None
    curve: tuple[Point, ...] = ()
    raw_curve: tuple[Point, ...] = ()
    metg: float | None = None
    raw_metg: float | None = None
    bytes_per_task: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return attrs.asdict(self)
