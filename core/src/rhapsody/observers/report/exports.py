"""Writes a journal's tasks for other tools: tables, JSON, and the trace format of Chrome and Perfetto."""

from __future__ import annotations

import csv
import json
from typing import Any, TextIO

import attrs

from rhapsody.observers.journal.reader import JournalReader, Run, TaskRow


def write_csv(journal: JournalReader, run: Run, file: TextIO) -> None:
    """Write a line for each task, under a line of names; times in seconds since the epoch."""
    names = [field.name for field in attrs.fields(TaskRow)]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for task in journal.tasks(run):
        writer.writerow([getattr(task, name) for name in names])


def write_json(journal: JournalReader, run: Run, file: TextIO) -> None:
    """Write the run, its tasks, and the attempts at those that were tried again, as one JSON object."""
    tasks, attempts = map(attrs.asdict, journal.tasks(run)), map(attrs.asdict, journal.attempts(run))
    json.dump({"run": attrs.asdict(run), "tasks": [*tasks], "attempts": [*attempts]}, file, indent=1)


def write_chrome_trace(journal: JournalReader, run: Run, file: TextIO) -> None:
    """Write the tasks that ran as trace events; https://ui.perfetto.dev opens the file.

    Workers are processes, and tasks that ran in one of them at the same time are on threads of it.
    """
    workers: dict[str, int] = {}
    ends: dict[int, list[float]] = {}
    events: list[dict[str, Any]] = []
    for task in sorted(journal.tasks(run), key=lambda task: task.started or 0):
        if task.started is None or task.ended is None:
            continue
        worker = workers.setdefault(task.worker or task.backend, len(workers) + 1)
        lanes = ends.setdefault(worker, [])
        lane = next((number for number, end in enumerate(lanes) if end <= task.started), len(lanes))
        lanes[lane:] = [task.ended] if lane == len(lanes) else [task.ended, *lanes[lane + 1 :]]
        events.append({
            "name": task.name, "cat": task.backend, "ph": "X", "pid": worker, "tid": lane,
            "ts": (task.started - run.started) * 1e6, "dur": (task.ended - task.started) * 1e6,
            "args": {"uid": task.uid, "call": task.text, "state": task.state, "error": task.error},
        })  # fmt: skip
    for name, number in workers.items():
        events.append({"name": "process_name", "ph": "M", "pid": number, "args": {"name": name}})
    json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file)
