"""The timeline of workers: which of them was busy when."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any, Final

from rhapsody.observers.journal.reader import TaskRow

_BARS: Final = 1500  # tasks that are drawn one by one; more are added up
_ROWS: Final = 48  # rows of the drawing
_COLUMNS: Final = 300  # of the drawing, where tasks are added up


def timeline(tasks: Sequence[TaskRow], began: float, length: float) -> dict[str, Any]:
    """Return the rows of the drawing: a lane for each task that ran at the same time on one worker.

    Few tasks are bars: row, start, seconds, state, text. Many are cells: row, column, the part of the cell's time in
    which its lanes were busy, and whether a task failed in it. Lanes beyond the rows share rows.
    """
    lanes: list[str] = []
    free: dict[str, list[tuple[float, int]]] = {}
    placed: list[tuple[int, TaskRow, float]] = []
    for task in sorted((task for task in tasks if task.started is not None), key=lambda task: task.started or 0):
        worker = task.worker or task.backend
        end = task.ended if task.ended is not None else began + length
        ends = free.setdefault(worker, [])
        if ends and ends[0][0] <= (task.started or 0):
            lane = heapq.heappop(ends)[1]
        else:
            lane = len(lanes)
            lanes.append(worker)
        heapq.heappush(ends, (end, lane))
        placed.append((lane, task, end))
    order = {lane: place for place, lane in enumerate(sorted(range(len(lanes)), key=lambda lane: (lanes[lane], lane)))}
    share = max(1, math.ceil(len(lanes) / _ROWS))  # lanes of one row
    names = [""] * math.ceil(len(lanes) / share)
    for lane, place in order.items():
        names[place // share] = names[place // share] or lanes[lane]
    drawing: dict[str, Any] = {"lanes": len(lanes), "share": share, "rows": names}
    rows = [(order[lane] // share, task, end) for lane, task, end in placed]
    if len(rows) <= _BARS and share == 1:
        return drawing | {"bars": [_bar(row, task, end, began) for row, task, end in rows]}
    return drawing | {
        "columns": _COLUMNS,
        "cells": _cells(rows, began, length, [min(share, len(lanes) - row * share) for row in range(len(names))]),
    }


def _bar(row: int, task: TaskRow, end: float, began: float) -> list[Any]:
    start = task.started or began
    return [row, start - began, end - start, task.state, f"{task.uid}: {task.text}"]


def _cells(
    rows: Sequence[tuple[int, TaskRow, float]], began: float, length: float, lanes: Sequence[int]
) -> list[list[Any]]:
    width = length / _COLUMNS
    busy: dict[tuple[int, int], float] = {}
    failed: set[tuple[int, int]] = set()
    for row, task, end in rows:
        start, stop = (task.started or began) - began, min(end - began, length)
        first, last = (min(max(int(at / width), 0), _COLUMNS - 1) for at in (start, stop))
        for column in range(first, last + 1):
            overlap = min(stop, (column + 1) * width) - max(start, column * width)
            busy[row, column] = busy.get((row, column), 0.0) + max(overlap, 0.0)
        if task.state == "FAILED":
            failed.add((row, last))
    return [
        [row, column, round(min(seconds / width / lanes[row], 1.0), 3), int((row, column) in failed)]
        for (row, column), seconds in sorted(busy.items())
    ]
