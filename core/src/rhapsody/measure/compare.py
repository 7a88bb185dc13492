"""Measures one backend, and its raw engine between the rounds."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import resource
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from rhapsody.measure.raw import RawEngine, RawFactory
from rhapsody.measure.results import Comparison, Point, Spread
from rhapsody.measure.work import KINDS, Kind, noop, work
from rhapsody.model.task import ComputeTask
from rhapsody.seam.backend import AttachableBackend
from rhapsody.sessions.session import Session

_SAMPLES: Final = 300  # single tasks whose latency is taken
_PATIENCE: Final = 10.0  # seconds for these, and for all points of a curve
_LONGEST: Final = 0.1  # seconds: the tasks with which a curve begins
_STEP: Final = 4.0  # each next point has tasks that are this many times shorter
_POINT: Final = 0.25  # seconds that a point would ideally take
_MOST: Final = 10_000  # tasks in a point
_ENOUGH: Final = 0.25  # efficiency at which a curve ends
_MEMORY_TASKS: Final = 2000


async def compare(
    backend: AttachableBackend,
    raw: RawFactory | None = None,
    *,
    name: str | None = None,
    kind: str = "noop",
    tasks: int | None = None,
    rounds: int = 5,
    details: bool = True,
    session: Session | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Comparison:
    """Measure a backend beside its raw engine.

    Args:
        backend: to measure; not started, unless a session is given.
        raw: makes the engine to compare with; None measures the backend alone.
        name: to show. Default: the backend's own.
        kind: of tasks, a key of `KINDS`.
        tasks: in a round.
        rounds: of each, in turn.
        details: whether to take latency, the curve of efficiency and memory too.
        session: in which the backend runs; it is left open.
        on_stage: called with the name of each stage before it starts.
    """
    if session is None:
        async with Session([backend]) as own:
            return await compare(
                backend,
                raw,
                name=name,
                kind=kind,
                tasks=tasks,
                rounds=rounds,
                details=details,
                session=own,
                on_stage=on_stage,
            )
    ours = _Ours(session, backend.name)
    slots = session._runners[backend.name].slots
    with ThreadPoolExecutor(1, thread_name_prefix="raw engine") as thread, contextlib.ExitStack() as stack:
        engine: _Raw | None = None
        if raw is not None:
            loop = asyncio.get_running_loop()
            context = raw(backend, slots)
            on_stage("starting the raw engine")
            engine = _Raw(await loop.run_in_executor(thread, context.__enter__), thread)
            stack.callback(lambda: thread.submit(context.__exit__, None, None, None).result())
        return await _measure(ours, engine, slots, name or backend.name, kind, tasks, rounds, details, on_stage)


class _Ours:
    """The backend, through a session."""

    def __init__(self, session: Session, backend: str) -> None:
        self.session = session
        self.backend = backend

    async def run(self, kind: Kind, calls: Iterable[tuple[Any, ...]]) -> None:
        function, backend = kind.function, self.backend
        if function is None:
            tasks = [ComputeTask(executable=argv[0], arguments=argv[1:], backend=backend) for argv in calls]
        else:
            tasks = [ComputeTask(function=function, args=arguments, backend=backend) for arguments in calls]
        await self.session.submit_tasks(tasks)
        await self.session.wait_tasks(tasks)
        for task in tasks:
            task.result()

    async def one(self) -> None:
        (future,) = await self.session.submit_tasks([ComputeTask(function=noop, backend=self.backend)])
        await future


class _Raw:
    """The raw engine, in its thread."""

    def __init__(self, engine: RawEngine, thread: ThreadPoolExecutor) -> None:
        self.engine = engine
        self._thread = thread

    def can(self, kind: Kind) -> bool:
        return kind.function is not None or self.engine.commands is not None

    async def run(self, kind: Kind, calls: Sequence[tuple[Any, ...]]) -> None:
        engine, loop = self.engine, asyncio.get_running_loop()
        if kind.function is None:
            assert engine.commands is not None
            await loop.run_in_executor(self._thread, engine.commands, calls)
        else:
            await loop.run_in_executor(self._thread, engine.run, kind.function, calls)

    async def one(self) -> None:
        if self.engine.awaited is not None:
            await self.engine.awaited(noop)
        else:
            await asyncio.get_running_loop().run_in_executor(self._thread, self.engine.run, noop, [()])


async def _measure(
    ours: _Ours,
    engine: _Raw | None,
    slots: int,
    name: str,
    kind_name: str,
    tasks: int | None,
    rounds: int,
    details: bool,
    on_stage: Callable[[str], None],
) -> Comparison:
    kind = KINDS[kind_name]
    count = tasks or kind.tasks
    raw = engine if engine is not None and engine.can(kind) else None
    raw_count = min(count, raw.engine.most) if raw is not None else 0
    on_stage("warming up")
    await _took(ours.run, kind, min(count, 10 * slots))
    if raw is not None:
        await _took(raw.run, kind, min(raw_count, 10 * slots))
    ours_took: list[tuple[float, float]] = []
    raw_took: list[tuple[float, float]] = []
    for number in range(rounds):
        on_stage(f"round {number + 1} of {rounds}")
        ours_took.append(await _took(ours.run, kind, count))
        if raw is not None:
            raw_took.append(await _took(raw.run, kind, raw_count))
    found: dict[str, Any] = {}
    if raw is not None:
        found["raw_task_seconds"] = Spread.of(wall for wall, _ in raw_took)
        found["raw_cpu_seconds"] = Spread.of(cpu for _, cpu in raw_took)
        found["ratio"] = Spread.of(one[0] / other[0] for one, other in zip(ours_took, raw_took, strict=True))
    if details and kind.function is not None:
        found |= await _details(ours, raw, slots, on_stage)
    return Comparison(
        backend=name,
        raw=raw.engine.label if raw is not None else None,
        kind=kind_name,
        slots=slots,
        tasks=count,
        raw_tasks=raw_count,
        rounds=rounds,
        task_seconds=Spread.of(wall for wall, _ in ours_took),
        cpu_seconds=Spread.of(cpu for _, cpu in ours_took),
        **found,
    )


async def _details(ours: _Ours, raw: _Raw | None, slots: int, on_stage: Callable[[str], None]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    on_stage("latency")
    found["latency"], found["raw_latency"] = await _latencies(ours.one, raw.one if raw is not None else None)
    on_stage("efficiency by task length")
    found["curve"] = await _curve(ours.run, slots)
    found["metg"] = metg(found["curve"])
    if raw is not None:
        found["raw_curve"] = await _curve(raw.run, slots)
        found["raw_metg"] = metg(found["raw_curve"])
    on_stage("memory")
    found["bytes_per_task"] = await _memory(ours)
    return found


async def _took(run: Callable[..., Awaitable[None]], kind: Kind, count: int) -> tuple[float, float]:
    """Return the wall and processor seconds for each task."""
    calls = [kind.arguments(number) for number in range(count)]
    cpu, wall = _cpu(), time.perf_counter()
    await run(kind, calls)
    return (time.perf_counter() - wall) / count, (_cpu() - cpu) / count


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def _latencies(
    ours: Callable[[], Awaitable[None]], raw: Callable[[], Awaitable[None]] | None
) -> tuple[tuple[float, float], tuple[float, float] | None]:
    """Take single tasks of both in turn; return p50 and p99 of each."""
    taken: list[float] = []
    raw_taken: list[float] = []
    end = time.perf_counter() + _PATIENCE
    while len(taken) < _SAMPLES and (not taken or time.perf_counter() < end):
        taken.append(await _once(ours))
        if raw is not None:
            raw_taken.append(await _once(raw))
    return _percentiles(taken), _percentiles(raw_taken) if raw_taken else None


async def _once(one: Callable[[], Awaitable[None]]) -> float:
    start = time.perf_counter()
    await one()
    return time.perf_counter() - start


def _percentiles(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]


async def _curve(run: Callable[..., Awaitable[None]], slots: int) -> tuple[Point, ...]:
    """Measure ever shorter tasks until little of the slots' time is useful."""
    points: list[Point] = []
    seconds, end = _LONGEST, time.perf_counter() + _PATIENCE
    while seconds > 1e-6:
        count = int(min(_MOST, max(4 * slots, _POINT * slots / seconds)))
        count -= count % slots  # equal shares, or the last ones would count as waste

        def length(_: int, each: float = seconds) -> tuple[float]:
            return (each,)

        kind = Kind(count, work, length, seconds, "")
        took, _ = await _took(run, kind, count)
        points.append(Point(seconds, seconds / slots / took))
        if points[-1].efficiency < _ENOUGH or time.perf_counter() > end:
            break
        seconds /= _STEP
    return tuple(points)


def metg(curve: Sequence[Point], efficiency: float = 0.5) -> float | None:
    """Return the length at which a curve falls through an efficiency, between its points; None where it does not."""
    for longer, shorter in itertools.pairwise(curve):
        if longer.efficiency >= efficiency > shorter.efficiency:
            part = (longer.efficiency - efficiency) / (longer.efficiency - shorter.efficiency)
            return longer.seconds * math.exp(part * math.log(shorter.seconds / longer.seconds))
    return None


async def _memory(ours: _Ours) -> float:
    """Return the bytes for each task that was described and submitted, before the loop turns again."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tasks = [ComputeTask(function=noop, backend=ours.backend) for _ in range(_MEMORY_TASKS)]
        futures = await ours.session.submit_tasks(tasks)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    await asyncio.wait(futures)
    return (after - before) / _MEMORY_TASKS
