"""What observers of a session cost: `python -m benchmarks.bench_observers [--tasks N] [--rounds N]`.

No-ops on threads, alone and with each observer, in turn; processor time of the whole process and wall time, in
microseconds a task: the least of the rounds, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from rhapsody.api import ComputeTask, Session

OBSERVERS: dict[str, Callable[[Path], dict[str, Any] | None]] = {
    "none": lambda _: None,
    "journal": lambda _: None,
    "telemetry": lambda _: {},
    "telemetry, subscriber": lambda _: {},
    "telemetry, exported": lambda _: {"span_processors": [BatchSpanProcessor(InMemorySpanExporter())]},
    "telemetry, file": lambda folder: {"checkpoint_path": folder},
}


def _no_op() -> None:
    pass


async def _measure(name: str, tasks: int) -> tuple[float, float]:
    with TemporaryDirectory() as folder:
        async with Session(work_dir=folder, journal=name == "journal") as session:
            options = OBSERVERS[name](Path(folder))
            if options is not None:
                telemetry = await session.start_telemetry(**options)
                if name.endswith("subscriber"):
                    telemetry.subscribe(lambda event: None)
            await session.submit_tasks([ComputeTask(function=_no_op) for _ in range(1000)])
            await session.wait_tasks()
            wall, processor = time.perf_counter(), time.process_time()
            await session.submit_tasks([ComputeTask(function=_no_op) for _ in range(tasks)])
            await session.wait_tasks()
        scale = 1e6 / tasks
        return (time.process_time() - processor) * scale, (time.perf_counter() - wall) * scale


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in OBSERVERS}
    for _ in range(arguments.rounds):
        for name, measured in found.items():
            measured.append(asyncio.run(_measure(name, arguments.tasks)))
    print(f"{'observer':<24}{'processor, us a task':>22}{'wall, us a task':>18}")
    for name, measured in found.items():
        processor, wall = (min(column) for column in zip(*measured, strict=True))
        print(f"{name:<24}{processor:>22.1f}{wall:>18.1f}")


if __name__ == "__main__":
    main()
