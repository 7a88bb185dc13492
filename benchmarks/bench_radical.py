"""The radical backend against RADICAL-Pilot's own bulk submission, on the same pilot, in turns.

    python benchmarks/bench_radical.py

The raw rounds give `TaskManager.submit_tasks` one list of descriptions and wait for the last final state that its
callback reports; they pass by the session, the runner and the ledger. Prints for each measurement ours, raw, their
ratio and the bound. Needs about two minutes. Exits with 1 if a bound does not hold, which on a busy machine says
nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rhapsody.api import ComputeTask, Session, TaskState
from rhapsody_radical.backend import RadicalExecutionBackend

ROUNDS = 3
ECHOES, NO_OPS = 200, 2000
CORES = 2
ECHO_BOUND, NO_OP_BOUND, GAP_BOUND = 1.15, 0.1, 0.25
FINAL = ("DONE", "FAILED", "CANCELED")

failures: list[str] = []


def no_op() -> None:
    """Do nothing."""


class Measured(RadicalExecutionBackend):
    """A backend whose pilot can also be used past it."""

    waiting: frozenset[str] = frozenset()
    all_ended = threading.Event()
    numbers = itertools.count()

    def _on_event(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "tasks" and self.waiting:
            self.waiting -= {uid for uid, state, _ in event["tasks"] if state in FINAL}
            if not self.waiting:
                self.all_ended.set()
        super()._on_event(event)

    def raw(self) -> float:
        """Run the echoes as RADICAL-Pilot does by itself; seconds."""
        uids = [f"raw.{next(self.numbers):06d}" for _ in range(ECHOES)]
        self.all_ended.clear()
        self.waiting = frozenset(uids)
        assert self._process is not None
        began = time.perf_counter()
        self._process.submit([{"uid": uid, "executable": "/bin/echo", "arguments": ["hello"]} for uid in uids])
        self.all_ended.wait()
        return time.perf_counter() - began


async def timed(session: Session, tasks: Sequence[ComputeTask]) -> float:
    """Submit tasks and wait for them; seconds."""
    began = time.perf_counter()
    await session.submit_tasks(tasks)
    await session.wait_tasks(tasks)
    seconds = time.perf_counter() - began
    assert {task.state for task in tasks} == {TaskState.DONE}, [task.exception for task in tasks if task.exception][:3]
    return seconds


async def largest_gap(session: Session, tasks: Sequence[ComputeTask]) -> float:
    """Submit and run tasks beside a ticker of 10 ms; the longest that the ticker waited, in seconds."""
    gaps: list[float] = []

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.01)
            gaps.append(time.perf_counter() - last)
            last = time.perf_counter()

    ticker = asyncio.create_task(tick())
    await timed(session, tasks)
    ticker.cancel()
    return max(gaps)


def record(what: str, ours: float, raw: float | None, bound: float, symbol: str) -> None:
    value = ours / raw if raw else ours
    verdict = "ok" if value <= bound else "TOO SLOW"
    if value > bound:
        failures.append(what)
    against = f"raw {raw:8.3f} {symbol}  ratio {value:6.3f}" if raw else " " * 30
    print(f"{what:44} ours {ours:8.3f} {symbol}  {against}  bound {bound:g}  {verdict}", flush=True)


async def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        backend = Measured(resources={"cores": CORES})
        began = time.perf_counter()
        async with Session([backend], work_dir=Path(folder)) as session:
            print(f"the pilot was up after {time.perf_counter() - began:.1f} s", flush=True)
            await timed(session, [ComputeTask(executable="/bin/echo") for _ in range(10)])  # the first are slower
            raw: list[float] = []
            ours: list[float] = []
            for number in range(ROUNDS):
                raw.append(await asyncio.to_thread(backend.raw))
                echoes = [ComputeTask(executable="/bin/echo", arguments=["hello"]) for _ in range(ECHOES)]
                ours.append(await timed(session, echoes))
                print(f"round {number + 1}: raw {raw[-1]:.2f} s, ours {ours[-1]:.2f} s", flush=True)
            each = min(raw) / ECHOES * 1e3
            record(f"{ECHOES} /bin/echo, each", min(ours) / ECHOES * 1e3, each, ECHO_BOUND, "ms")
            functions = await timed(session, [ComputeTask(function=no_op) for _ in range(NO_OPS)])
            record(f"{NO_OPS} no-op functions, the first, each", functions / NO_OPS * 1e3, each, NO_OP_BOUND, "ms")
            functions = await timed(session, [ComputeTask(function=no_op) for _ in range(NO_OPS)])
            record(f"{NO_OPS} no-op functions, known, each", functions / NO_OPS * 1e3, each, NO_OP_BOUND, "ms")
            gap = await largest_gap(session, [ComputeTask(function=no_op) for _ in range(NO_OPS)])
            record(f"{NO_OPS} functions: longest gap of a ticker", gap, None, GAP_BOUND, "s ")
            gap = await largest_gap(session, [ComputeTask(executable="/bin/true") for _ in range(ECHOES)])
            record(f"{ECHOES} executables: longest gap of a ticker", gap, None, GAP_BOUND, "s ")
            began = time.perf_counter()
        record("closing", time.perf_counter() - began, None, 30, "s ")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
