"""A task of the process pool may have processes of its own."""

from __future__ import annotations

import pytest
from rhapsody.api import ComputeTask
from rhapsody.testing.travel import script

from .pool import processes, run

SCRIPT = """
import concurrent.futures
import multiprocessing

def doubled(number):
    return 2 * number

def in_pool():
    with multiprocessing.get_context(METHOD).Pool(2) as pool:
        return pool.map(doubled, range(3))

def in_executor():
    context = multiprocessing.get_context(METHOD)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        return list(pool.map(doubled, range(3)))
"""


@pytest.mark.parametrize(("name", "method"), [("in_pool", "fork"), ("in_executor", "fork"), ("in_pool", "spawn")])
async def test_a_task_may_start_a_pool(name: str, method: str) -> None:
    """Its processes, forked or spawned, find functions of the script."""
    with script(f"METHOD = {method!r}\n{SCRIPT}") as main:
        async with processes(1) as session:
            (task,) = await run(session, ComputeTask(function=getattr(main, name)))
    assert task.result().return_value == [0, 2, 4]
