"""Keys of tasks by their content."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import ComputeTask
from rhapsody.observers.content import Contents


def _key(function: Callable[..., Any] | None = None, *args: Any, **fields: Any) -> str | None:
    return Contents().call_of(ComputeTask(function=function, args=args, **fields)).key


def _add(a: Any, b: Any = 1) -> Any:
    return a + b


def _holding(value: Any) -> Callable[[], Any]:
    return lambda: value


SAME: list[Callable[[], str | None]] = [
    lambda: _key(_add, 1, 2),
    lambda: _key(_add, [1, {"a": (2.0, None)}], {3, 4}),
    lambda: _key(functools.partial(_add, 1), 2),
    lambda: _key(_holding([1])),
    lambda: _key(_add, 1, seed=7),
    lambda: _key(executable="echo", arguments=[1, "2"]),
    lambda: _key(_add, ComputeTask(function=_add, args=(1,))),
]


@pytest.mark.parametrize("key", SAME)
def test_same_content_same_key(key: Callable[[], str | None]) -> None:
    """Tasks that are described alike have one key."""
    assert key() == key() is not None


def test_other_content_other_key(tmp_path: Path) -> None:
    """Whatever differs in a task, but its uid, makes another key."""
    file = tmp_path / "input"
    keys = [
        *(key() for key in SAME),
        _key(_add, 1, 3),
        _key(_add, 1, "2"),
        _key(_add, 1, 2.0),
        _key(_add, True, 2),
        _key(_add, 1, kwargs={"b": 2}),
        _key(_add, [1, {"a": (2.0, 1)}], {3, 4}),
        _key(_holding([2])),
        _key(_add, 1, seed=8),
        _key(_add, 1),
        _key(_add, ComputeTask(function=_add, args=(2,))),
        _key(executable="echo", arguments=["1 2"]),
        _key(executable="echo", arguments=[1, "2"], environment={"A": "1"}),
        _key(executable="echo", arguments=[1, "2"], cwd=file),
    ]
    assert len(set(keys)) == len(keys)


def test_key_is_the_same_in_another_process() -> None:
    """A key does not depend on the interpreter that makes it."""
    script = """
from rhapsody.api import ComputeTask
from rhapsody.observers.content import Contents
def work(values, names): return [name in {"a", "b", "c"} for name in names]
print(Contents().call_of(ComputeTask(function=work, args=([1.5], {"x", "y", "z"}))).key)
"""
    keys = {
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": str(seed)}, capture_output=True,
            text=True, check=True, timeout=60,
        ).stdout for seed in (1, 2, 3)
    }  # fmt: skip
    assert len(keys) == 1


def test_changed_code_changes_the_key() -> None:
    """A function of the same name that does something else has another key; where it is written does not count."""
    keys = []
    for source in ("def f(): return 1", "\n\ndef f(): return 1", "def f(): return 2"):
        space: dict[str, Any] = {"__name__": "m"}
        exec(source, space)
        keys.append(_key(space["f"]))
    assert keys[0] == keys[1] != keys[2]


def test_unreadable_content_has_no_key() -> None:
    """Arguments that cannot be pickled leave the task without a key, and with a text."""
    call = Contents().call_of(ComputeTask(function=_add, args=((n for n in [1]),)))
    assert call.key is None
    assert "_add" in call.text


def test_long_chain_of_tasks_has_keys() -> None:
    """A task that takes the result of another is known by both, however long the chain."""
    contents = Contents()
    task = ComputeTask(function=_add, args=(0,))
    for _ in range(3000):
        task = ComputeTask(function=_add, args=(task,))
        assert contents.call_of(task).key
