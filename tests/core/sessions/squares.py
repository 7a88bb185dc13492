"""Tasks that return squares."""

from __future__ import annotations

from typing import Any

from rhapsody.api import ComputeTask


def square(x: int) -> int:
    return x * x


def tasks_of(count: int, **fields: Any) -> list[ComputeTask]:
    return [ComputeTask(function=square, args=(i,), **fields) for i in range(count)]
