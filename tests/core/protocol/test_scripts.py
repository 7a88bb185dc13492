"""What travels between a script and its workers: the script runs as a program of its own, as a user's does."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.testing.travel import script

HEAD = """
import asyncio
from rhapsody.api import *
from rhapsody.backends import ConcurrentExecutionBackend

async def values(*tasks, **options):
    backend = ConcurrentExecutionBackend(executor="processes", max_workers=1, **options)
    async with Session(backends=[backend]) as session:
        await session.submit_tasks(tasks)
        await session.wait_tasks(timeout=60)
    return [task.return_value if task.exception is None else task.exception for task in tasks]

def task(function, *args):
    return ComputeTask(function=function, args=args)
"""

COUNTER = """
def counter():
    n = 0
    def count():
        nonlocal n
        n += 1
        return n
    return count

def call(function):
    function()
    return function
"""


def run_script(folder: Path, body: str) -> str:
    """Run a script; return what it printed."""
    path = folder / "script.py"
    path.write_text(HEAD + textwrap.dedent(body))
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=100, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def value_on(backend: ConcurrentExecutionBackend, function: Callable[..., Any], *args: Any) -> Any:
    async with Session(backends=[backend]) as session:
        task = ComputeTask(function=function, args=args)
        await session.submit_tasks([task])
        return (await task).return_value


def test_class_attributes_travel_with_each_batch(tmp_path: Path) -> None:
    """What the script sets in a class before a submit is what the worker sees, and the worker's change stays there."""
    out = run_script(
        tmp_path,
        """
        class Config:
            scale = 1

        def scaled(x):
            value, Config.scale = Config.scale * x, 0
            return value, Config

        async def main():
            backend = ConcurrentExecutionBackend(executor="processes", max_workers=1)
            async with Session(backends=[backend]) as session:
                for scale in (1, 5):
                    Config.scale = scale
                    one = task(scaled, 3)
                    await session.submit_tasks([one])
                    value, kind = (await one).return_value
                    print(value, kind is Config, Config.scale)

        asyncio.run(main())
        """,
    )
    assert out.splitlines() == ["3 True 1", "15 True 5"]


def test_a_task_s_own_class_comes_by_value(tmp_path: Path) -> None:
    """It has no original in the script; its base is the script's, and its methods see the script's globals."""
    out = run_script(
        tmp_path,
        """
        SCALE = 2

        class Base:
            pass

        def make():
            class Local(Base):
                def scaled(self):
                    return 7 * SCALE
            return Local()

        made, = asyncio.run(values(task(make)))
        SCALE = 3
        print(type(made).__mro__[1] is Base, made.scaled())
        """,
    )
    assert out.split() == ["True", "21"]


def test_nested_sessions_keep_classes(tmp_path: Path) -> None:
    """A class that went to a worker, and from there to a worker's worker, comes home as the script's."""
    out = run_script(
        tmp_path,
        """
        class Point:
            scale = 2
            def __init__(self, x): self.x = x

        def make(x):
            return Point(x * Point.scale), (lambda: Point)

        def nested(x):
            from rhapsody.api import ComputeTask, Session
            from rhapsody.backends import ConcurrentExecutionBackend

            async def inner():
                backend = ConcurrentExecutionBackend(executor="processes", max_workers=1)
                async with Session(backends=[backend]) as session:
                    one = ComputeTask(function=make, args=(x,))
                    await session.submit_tasks([one])
                    return (await one).return_value

            point, get = asyncio.run(inner())
            assert type(point) is Point and get() is Point
            return point, get

        (point, get), = asyncio.run(values(task(nested, 3)))
        print(type(point) is Point, point.x, get() is Point)
        """,
    )
    assert out.split() == ["True", "6", "True"]


async def test_forked_workers_see_new_attributes() -> None:
    """Such a worker has the script's classes already; what was set after the fork travels all the same."""
    source = "class Forked:\n    scale = 1\ndef scale(): return Forked.scale, Forked\n"
    with script(source) as main, ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        for scale in (1, 5):
            main.Forked.scale = scale
            value = await value_on(ConcurrentExecutionBackend(executor=pool), main.scale)
            assert value == (scale, main.Forked)


async def test_forked_workers_refer_by_name() -> None:
    """A function that is imported may reach into the script; a forked worker has it."""
    with script("class Reached:\n    pass\n") as main, ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        value = await value_on(ConcurrentExecutionBackend(executor=pool), getattr, sys.modules["__main__"], "Reached")
        assert value is main.Reached


@pytest.mark.parametrize("kind", ["threads", "processes"])
async def test_closure_data_comes_home(kind: str) -> None:
    """What a call has changed in a closure is in the one that comes home."""
    with script(COUNTER) as main:
        count = await value_on(ConcurrentExecutionBackend(executor=kind), main.call, main.counter())
        assert count() == 2


CACHES = """
import functools, threading

@functools.lru_cache(maxsize=None)
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)

@functools.cache
def plain(n):
    return 2 * n

def use(n):
    return fib(n), plain(n)

class Shape:
    @functools.cached_property
    def area(self):
        return 6

@functools.singledispatch
def name(value):
    return "object"

@name.register
def _(value: int):
    return "int"

@name.register(Shape)
def _(value):
    return "shape"

def names(*values):
    return [name(value) for value in values]

lock = threading.Lock()

def locked():
    with lock:
        return 1

def returns(value):
    return value
"""


def test_caches_and_dispatchers_travel(tmp_path: Path) -> None:
    """A cached function, a dispatcher and a cached property of a script run on a worker and come home themselves."""
    out = run_script(
        tmp_path,
        f"""
{textwrap.indent(CACHES, " " * 8)}
        shape = Shape()
        tasks = [task(use, 20), task(fib, 10), task(names, 1, "x", Shape()), task(getattr, shape, "area")]
        print(*asyncio.run(values(*tasks)))
        sent = [fib, name, shape, plain]
        came = asyncio.run(values(*(task(returns, value) for value in sent)))
        print(*(a is b for a, b in zip(sent, came)), came[2].area)
        """,
    )
    assert out.splitlines() == ["(6765, 40) 55 ['int', 'object', 'shape'] 6", "True True False True 6"]


def test_the_message_names_what_cannot_travel(tmp_path: Path) -> None:
    """A lock or an open file that the script's function uses is named, with what to do."""
    out = run_script(
        tmp_path,
        f"""
{textwrap.indent(CACHES, " " * 8)}
        book = open(__file__)

        def reads():
            return book.read()

        for error in asyncio.run(values(task(locked), task(reads), task(returns, [1, lock]))):
            print(type(error).__name__, str(error).splitlines()[0])
        """,
    )
    first, second, third = out.splitlines()
    assert first.startswith("SerializationError")
    assert second.startswith("SerializationError")
    assert "the global 'lock' of locked" in first
    assert "make it in the function" in first
    assert "the global 'book' of reads" in second
    assert "pass its path" in second
    assert "item 1" in third
    assert "a lock works in one process only" in third
