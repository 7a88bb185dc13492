"""What a worker caches of functions between tasks, and what it must not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from rhapsody import worker
from rhapsody.api import ComputeTask
from rhapsody.worker.functions import _kept, load_function

from ..local import local, run

pytestmark = pytest.mark.usefixtures("leaves_nothing")


async def test_worker_has_the_import_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A worker has the caller's import path, without entries that are no text."""
    monkeypatch.setattr(sys, "path", [tmp_path, *sys.path, "/somewhere"])
    (task,) = await run(local("processes", 1), ComputeTask(function=lambda: sys.path))
    assert task.return_value == sys.path[1:]


async def test_tasks_share_no_mutation() -> None:
    """A task does not see what another did to a shared argument."""
    shared = [0] * 1000

    def append(values: list[int]) -> int:
        values.append(1)
        return len(values)

    tasks = await run(local("processes", 1), *(ComputeTask(function=append, args=(shared,)) for _ in range(200)))
    assert {task.return_value for task in tasks} == {1001}
    assert len(shared) == 1000


SCRIPT = """
import functools

class Counter:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return self.calls

    def call(self):
        return self()

def count(calls):
    calls.append(1)
    return len(calls)

def make():
    calls = []
    return lambda: count(calls)

method, instance, partial, closure = Counter().call, Counter(), functools.partial(count, []), make()
model = None

def load_once():
    global model
    loads = model is None
    model = model or "loaded"
    return loads
"""


@pytest.fixture
def script() -> dict[str, Any]:
    """What a script has defined: all of it travels by value."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(SCRIPT, names)
    return names


@pytest.mark.parametrize("name", ["method", "instance", "partial", "closure"])
async def test_tasks_share_no_closure_state(script: dict[str, Any], name: str) -> None:
    """A task does not see what another did to what their function carries."""
    tasks = await run(local("processes", 1), *(ComputeTask(function=script[name]) for _ in range(4)))
    assert [task.return_value for task in tasks] == [1] * 4


async def test_globals_last_in_a_worker(script: dict[str, Any]) -> None:
    """What a plain function keeps in a global is there for the next task."""
    tasks = await run(local("processes", 1), *(ComputeTask(function=script["load_once"]) for _ in range(4)))
    assert sum(task.return_value for task in tasks) == 1


def test_worker_caches_stateless_code(script: dict[str, Any]) -> None:
    """A worker caches plain functions and classes, and nothing that carries data."""
    functions = {name: value for name, value in script.items() if callable(value)}
    functions |= {"a builtin": len, "a method of a builtin": [].append}
    pickles = {name: worker.dumps(value) for name, value in functions.items()}
    kept = {name for name, pickled in pickles.items() if load_function(pickled) is load_function(pickled)}
    assert kept == {"a builtin", "Counter", "count", "make", "load_once"}


@pytest.mark.parametrize(("count", "size"), [(1000, 10), (200, 2**20)])
def test_worker_cache_is_bounded(count: int, size: int) -> None:
    """A worker's cache is bounded in number and in bytes."""
    for number in range(count):
        text = f"{number:{size}}"
        load_function(worker.dumps(eval("lambda: text", {"__name__": "__main__", "text": text})))
    assert 0 < len(_kept) <= 256
    assert sum(map(len, _kept)) < 2**26 + 2**21
