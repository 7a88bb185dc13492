"""The soak: tasks of every kind on threads and processes, while workers are killed, tasks canceled and hooks raise.

    python benchmarks/soak.py --seconds 600 --seed 7

Sessions open and close at random. At the end the books must balance: every task accepted has ended exactly once, as
its kind allows, with the right result, and ran at most once; memory is flat; file descriptors, threads and processes
are back where they were. The seed reproduces what is done; when it is done is the machine's. Prints a report as JSON,
and exits with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from rhapsody.api import (
    CancelResult,
    Session,
    SessionClosedError,
    SubmitError,
    TaskCanceledError,
    TaskState,
    WorkerLostError,
)
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.plugin import EXECUTABLE, TaskBatch, hookimpl
from soak_tasks import Expected, random_task, square

LIVES = 3  # sessions at the same time
FINAL = (TaskState.DONE, TaskState.FAILED, TaskState.CANCELED)


class Moody(ConcurrentExecutionBackend):
    """Refuses a batch now and then."""

    dice: random.Random
    raised = 0

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        """Submit, or not."""
        if self.dice.random() < 0.01:
            type(self).raised += 1
            raise ZeroDivisionError("in a bad mood")
        super().rhapsody_submit(batch)


class Book:
    """An observer that counts how often each task ends, and that raises now and then."""

    def __init__(self, dice: random.Random) -> None:
        self.ends: Counter[str] = Counter()
        self.raised = 0
        self._dice = dice

    @hookimpl
    def rhapsody_tasks_changed(self, transitions: Sequence[Any]) -> None:
        """Count, and raise."""
        self.ends.update(change.task.uid for change in transitions if change.new in FINAL)
        if self._dice.random() < 0.05:
            self.raised += 1
            raise ZeroDivisionError("an observer's own")


class Soak:
    """Everything that happens between start and end.

    Args:
        seconds: for which sessions are opened.
        seed: of all that is random.
        tasks: after which no further session is opened, even if there is time left; 0 for no limit.
        folder: for what tasks write.
    """

    def __init__(self, seconds: float, seed: int, tasks: int, folder: Path) -> None:
        self.dice = random.Random(seed)
        self.until = time.monotonic() + seconds
        self.most = tasks
        self.folder = folder
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.slowest_close = 0.0
        self.me = psutil.Process()

    # -- one session ---------------------------------------------------------------------------------------------------

    async def life(self, number: int) -> None:
        dice = random.Random(self.dice.random())
        pool = ThreadPoolExecutor(2) if dice.random() < 0.2 else None
        kinds: dict[str, Any] = {"threads": pool or "threads", "processes": "processes"}
        backends = []
        for name, executor in kinds.items():
            backend = Moody(name, executor, max_workers=dice.randint(1, 3))
            backend.dice = random.Random(dice.random())
            backends.append(backend)
        session = Session(backends=backends, work_dir=self.folder)
        book = Book(random.Random(dice.random()))
        session.observe(book)
        ledger = self.folder / f"{number}.ledger"
        ledger.touch()
        expected: list[Expected] = []
        wait = dice.random() < 0.7
        try:
            for _ in range(dice.randint(1, 8)):
                burst = [random_task(dice, str(ledger)) for _ in range(dice.choice((1, 10, 100, 1000)))]
                await session.submit_tasks([item.task for item in burst])
                expected += burst
                await self.disturb(dice, session, expected)
            for item in expected:
                if item.can_hang and not item.task.is_final:
                    await self.cancel(session, [item])
        finally:
            began = time.monotonic()
            await session.close(wait=wait)
            self.slowest_close = max(self.slowest_close, 0.0 if wait else time.monotonic() - began)
            if pool is not None:
                pool.shutdown()
        self.audit(expected, book, ledger, closed_in_a_hurry=not wait)
        self.counts["sessions"] += 1
        self.counts["hooks raised"] += book.raised

    async def disturb(self, dice: random.Random, session: Session, expected: list[Expected]) -> None:
        """Cancel, wait and give up, kill workers: some of it."""
        if dice.random() < 0.5:
            await asyncio.sleep(dice.random() * 0.2)
        if dice.random() < 0.5:
            await self.cancel(session, dice.sample(expected, min(len(expected), dice.randint(1, 200))))
        if dice.random() < 0.3:
            try:
                await session.wait_tasks(timeout=dice.random() * 0.3)
            except TimeoutError:
                self.counts["waits given up"] += 1
        if dice.random() < 0.3:
            self.kill_a_worker(dice)

    async def cancel(self, session: Session, items: list[Expected]) -> None:
        for item in items:
            item.canceled = True
        results = await session.cancel_tasks([item.task for item in items])
        for item in items:
            answer, task = results[item.task.uid], item.task
            self.counts[f"cancel: {answer}"] += 1
            if (task.state is TaskState.CANCELED) != (
                answer in (CancelResult.NEVER_STARTED, CancelResult.STOPPED)
            ) and (answer is not CancelResult.TOO_LATE):
                self.problems.append(f"{task.uid} was answered {answer} and is {task.state}")

    def kill_a_worker(self, dice: random.Random) -> None:
        """Kill one of the pools' processes, whatever it does."""
        workers = []
        for child in self.me.children():
            try:
                if any("rhapsody.backends.local.pool.main" in word for word in child.cmdline()):
                    workers.append(child)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        if workers:
            dice.choice(workers).kill()
            self.counts["workers killed"] += 1

    # -- the books -----------------------------------------------------------------------------------------------------

    def audit(self, expected: list[Expected], book: Book, ledger: Path, closed_in_a_hurry: bool) -> None:
        """Check every task of a session that is closed."""
        runs = Counter(ledger.read_text().split())
        ledger.unlink()
        for item in expected:
            task = item.task
            self.counts["tasks"] += 1
            self.counts[str(task.state)] += 1
            wrong = self.verdict(item, closed_in_a_hurry)
            if book.ends[task.uid] != 1:
                wrong = f"ended {book.ends[task.uid]} times"
            elif runs[task.uid] > 1:
                wrong = f"ran {runs[task.uid]} times"
            elif task.function is square and task.state is TaskState.DONE and runs[task.uid] != 1:
                wrong = "is DONE and never ran"
            elif task.function is square and task.state is TaskState.CANCELED and runs[task.uid]:
                wrong = None if task.started_at is not None else "is CANCELED before it started, and ran"
            if wrong:
                self.problems.append(f"{task.uid} on {task.backend}: {wrong}")

    def verdict(self, item: Expected, closed_in_a_hurry: bool) -> str | None:
        """Say what is wrong with how a task ended; None if nothing is."""
        task, error = item.task, item.task.exception
        self.counts[f"failed with {type(error).__name__}"] += task.state is TaskState.FAILED
        if task.state is TaskState.DONE:
            if item.error is not None or item.can_hang:
                return "is DONE and cannot be"
            right = task.stdout == item.stdout if task.kind is EXECUTABLE else task.return_value == item.value
            return None if right else f"has the wrong result {task.return_value!r:.50}, {task.stdout!r:.50}"
        if task.state is TaskState.CANCELED:
            asked = item.canceled or closed_in_a_hurry
            return None if asked and isinstance(error, TaskCanceledError) else f"is CANCELED with {error!r}"
        if task.state is not TaskState.FAILED:
            return f"is {task.state}"
        if item.error is not None and isinstance(error, item.error):
            return None
        if isinstance(error, SubmitError) and "in a bad mood" in str(error):
            return None
        if isinstance(error, WorkerLostError) and task.backend == "processes" and task.kind is not EXECUTABLE:
            return None  # workers are killed
        if isinstance(error, SessionClosedError) and closed_in_a_hurry:
            return None
        return f"failed with {error!r}"

    # ------------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Open sessions until the time is over."""
        numbers = iter(range(10**9))
        memory: list[int] = []

        async def lives() -> None:
            while time.monotonic() < self.until and not (self.most and self.counts["tasks"] >= self.most):
                await self.life(next(numbers))
                memory.append(self.me.memory_info().rss)

        await asyncio.gather(*(lives() for _ in range(LIVES)))
        self.memory = memory

    def report(self) -> dict[str, Any]:
        """Return the figures."""
        third = max(1, len(self.memory) // 3)
        early, late = max(self.memory[third : 2 * third] or self.memory), max(self.memory[-third:])
        if len(self.memory) >= 30 and late > 1.25 * early + 20e6:
            self.problems.append(f"memory grew from {early / 1e6:.0f} to {late / 1e6:.0f} MB")
        ended = sum(self.counts[str(state)] for state in FINAL)
        if ended != self.counts["tasks"]:
            self.problems.append(f"{self.counts['tasks']} tasks were accepted, and {ended} ended")
        return {
            **{name: count for name, count in sorted(self.counts.items()) if count},
            "batches refused": Moody.raised,
            "slowest hurried close (s)": round(self.slowest_close, 2),
            "memory, middle third and last third (MB)": [round(early / 1e6), round(late / 1e6)],
            "problems": self.problems[:20],
        }


def main() -> int:
    """Run, report, and compare what is left with what was there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--tasks", type=int, default=0, help="stop after this many, whatever the time")
    options = parser.parse_args()
    me = psutil.Process()

    def held() -> tuple[int, int, int]:
        gc.collect()
        return me.num_fds(), threading.active_count(), len(me.children(recursive=True))

    before = held()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rhapsody-soak-") as folder:
        soak = Soak(options.seconds, options.seed, options.tasks, Path(folder))
        asyncio.run(soak.run())
        figures = soak.report()
        left = [path.name for path in Path(folder).iterdir()]
    deadline = time.monotonic() + 10
    while (after := held()) != before and time.monotonic() < deadline:
        time.sleep(0.05)
    figures["descriptors, threads, processes before and after"] = [before, after]
    if any(now > then for now, then in zip(after, before, strict=True)):
        figures["problems"].append(f"left behind: {after} where there was {before} (descriptors, threads, processes)")
    if left:
        figures["problems"].append(f"files left: {left}")
    print(json.dumps({"seed": options.seed, "seconds": round(time.monotonic() - began, 1), **figures}, indent=1))
    return 1 if figures["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
