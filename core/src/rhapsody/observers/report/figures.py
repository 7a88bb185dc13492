"""The figures of one run of a session, computed from its journal."""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from rhapsody.observers.journal.reader import AttemptRow, JournalReader, Run, TaskRow
from rhapsody.observers.report.timeline import timeline

_POINTS: Final = 200  # of a curve
_LISTED: Final = 12  # slowest tasks, kinds of error, names
_NUMBERS: Final = re.compile(r"\d+")
_BINS: Final = 40  # of a distribution


def figures(journal: JournalReader, run: Run | None = None) -> dict[str, Any]:
    """Return what the report shows of one run, ready for JSON; times in seconds since the run began.

    Args:
        journal: of the session.
        run: which; None for the last.
    """
    run = run or journal.runs()[-1]
    tasks = list(journal.tasks(run))
    last = max((task.ended or task.started or task.submitted for task in tasks), default=run.started)
    end = max(run.ended or 0, last)  # the clock of another machine may be ahead
    length = max(end - run.started, 1e-6)
    ran = [task for task in tasks if task.started is not None and task.ended is not None]
    runtimes = [task.ended - task.started for task in ran if task.ended is not None and task.started is not None]
    waits = [task.started - task.submitted for task in tasks if task.started is not None]
    lanes = timeline(tasks, run.started, length)
    busy = sum(runtimes)
    return {
        "session": run.session,
        "run": run.number,
        "began": run.started,
        "seconds": length,
        "complete": run.ended is not None,
        "about": {
            "backends": run.backends, "host": run.host, "process": run.pid, "Python": run.python,
            "rhapsody-core": run.rhapsody, "command": run.command,
        },
        "tasks": len(tasks),
        "states": dict(Counter(task.state for task in tasks)),
        "tasks_per_second": len(ran) / length,
        "busy_seconds": busy,
        "lanes": lanes["lanes"],
        "utilization": busy / (length * lanes["lanes"]) if lanes["lanes"] else 0.0,
        "curves": _curves(tasks, run.started, length),
        "timeline": lanes,
        "waits": distribution(waits),
        "runtimes": distribution(runtimes),
        "names": _names(tasks),
        "slowest": [_shown(task, run.started) for task in sorted(ran, key=_runtime, reverse=True)[:_LISTED]],
        "errors": _errors(tasks, run.started),
        "attempts": sorted(Counter(task.attempt for task in ran).items()),
        "retries": _retries(list(journal.attempts(run)), run.started),
        "resources": _resources(tasks),
    }  # fmt: skip


def _runtime(task: TaskRow) -> float:
    return task.ended - task.started if task.ended is not None and task.started is not None else 0.0


def _curves(tasks: Sequence[TaskRow], began: float, length: float) -> dict[str, Any]:
    """Return how many tasks waited, ran and had ended at points of time, and how many ran and ended in each step."""
    submitted = sorted(task.submitted - began for task in tasks)
    started = sorted(task.started - began for task in tasks if task.started is not None)
    left = sorted((task.started or task.ended or math.inf) - began for task in tasks)
    ran = sorted(task.ended - began for task in tasks if task.ended is not None and task.started is not None)
    ends = {
        state: sorted(task.ended - began for task in tasks if task.state == state and task.ended is not None)
        for state in ("DONE", "FAILED", "CANCELED")
    }
    step = length / _POINTS
    times = [step * number for number in range(_POINTS + 1)]
    count = bisect.bisect_right
    busy = [total - part for total, part in zip(_areas(started, times), _areas(ran, times), strict=True)]
    ended = sorted(time for times_of_state in ends.values() for time in times_of_state)
    return {
        "times": times,
        "waiting": [count(submitted, at) - count(left, at) for at in times],
        "running": [count(started, at) - count(ran, at) for at in times],
        **{state: [count(found, at) for at in times] for state, found in ends.items()},
        "concurrency": [0.0, *(max(0.0, (after - before) / step) for before, after in itertools.pairwise(busy))],
        "throughput": [(count(ended, at) - count(ended, at - step)) / step for at in times],
    }


def _areas(moments: Sequence[float], times: Sequence[float]) -> list[float]:
    """Return, for each point of time, how long ago all the moments before it are, added up."""
    sums = [0.0, *itertools.accumulate(moments)]
    counts = (bisect.bisect_right(moments, at) for at in times)
    return [count * at - sums[count] for at, count in zip(times, counts, strict=True)]


def distribution(values: Sequence[float]) -> dict[str, Any]:
    """Return quantiles and a histogram of durations, with bins that grow by a constant factor."""
    if not values:
        return {"count": 0}
    ordered = sorted(max(value, 0.0) for value in values)
    low = math.log10(max(ordered[len(ordered) // 1000], 1e-7))
    high = max(math.log10(max(ordered[-1], 1e-7)), low + 0.1)
    edges = [10 ** (low + (high - low) * number / _BINS) for number in range(_BINS + 1)]
    edges[-1] = max(edges[-1], ordered[-1])
    places = [0, *(bisect.bisect_left(ordered, edge) for edge in edges[1:-1]), len(ordered)]
    return {
        "count": len(ordered),
        "mean": sum(ordered) / len(ordered),
        **{name: ordered[min(int(len(ordered) * part), len(ordered) - 1)] for name, part in _QUANTILES.items()},
        "edges": edges,
        "bins": [after - before for before, after in itertools.pairwise(places)],
    }


_QUANTILES: Final = {"least": 0.0, "median": 0.5, "p95": 0.95, "p99": 0.99, "most": 1.0}


def _names(tasks: Sequence[TaskRow]) -> list[dict[str, Any]]:
    groups: dict[str, list[TaskRow]] = {}
    for task in tasks:
        groups.setdefault(task.name, []).append(task)
    rows: list[dict[str, Any]] = []
    for name, group in groups.items():
        times = sorted(map(_runtime, group))
        states = Counter(task.state for task in group)
        rows.append({
            "name": name, "tasks": len(group), "done": states["DONE"], "failed": states["FAILED"],
            "seconds": sum(times), "median": times[len(times) // 2], "most": times[-1],
        })  # fmt: skip
    return sorted(rows, key=lambda row: -row["seconds"])[:_LISTED]


def _shown(task: TaskRow, began: float) -> dict[str, Any]:
    return {
        "uid": task.uid, "text": task.text, "state": task.state, "worker": task.worker, "attempt": task.attempt,
        "started": None if task.started is None else task.started - began, "seconds": _runtime(task),
    }  # fmt: skip


def _errors(tasks: Sequence[TaskRow], began: float) -> list[dict[str, Any]]:
    """Return the errors, those that differ by numbers alone together, the most frequent first."""
    groups: dict[tuple[str, str], list[TaskRow]] = {}
    for task in tasks:
        if task.state == "FAILED":
            message = _NUMBERS.sub("#", task.error or "")
            groups.setdefault((task.error_type or "no error was recorded", message), []).append(task)
    found = sorted(groups.items(), key=lambda item: -len(item[1]))[:_LISTED]
    return [
        {"type": kind, "message": group[0].error or "", "tasks": len(group), "traceback": group[0].traceback or "",
         "first": _shown(group[0], began)} for (kind, _), group in found
    ]  # fmt: skip


def _retries(attempts: Sequence[AttemptRow], began: float) -> dict[str, Any]:
    """Return how many tasks were tried again, how often, and each attempt at the most stubborn of them."""
    groups: dict[str, list[AttemptRow]] = {}
    for attempt in attempts:
        groups.setdefault(attempt.uid, []).append(attempt)
    listed = sorted(groups.values(), key=len, reverse=True)[:_LISTED]
    return {
        "tasks": len(groups),
        "again": len(attempts) - len(groups),
        "errors": Counter(attempt.error for attempt in attempts if attempt.error).most_common(_LISTED),
        "listed": [
            {"uid": one.uid, "text": one.text, "attempt": one.attempt, "worker": one.worker or one.backend,
             "error": one.error or "", "seconds": one.ended - one.started if one.ended and one.started else None,
             "started": None if one.started is None else one.started - began} for group in listed for one in group
        ],
    }  # fmt: skip


def _resources(tasks: Sequence[TaskRow]) -> list[dict[str, Any]]:
    groups: dict[str, list[float]] = {}
    for task in tasks:
        groups.setdefault(task.resources or "none asked for", []).append(_runtime(task))
    return [{"asked": asked, "tasks": len(times), "seconds": sum(times)} for asked, times in groups.items()][:_LISTED]
