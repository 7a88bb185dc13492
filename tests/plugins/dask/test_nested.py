"""A task in a worker of Dask may have processes of its own."""

from __future__ import annotations

import pytest
from rhapsody.api import ComputeTask, Session
from rhapsody.testing.travel import script

pytestmark = [pytest.mark.engine("dask"), pytest.mark.timeout(240)]
SCRIPT = """
import multiprocessing

def doubled(number):
    return 2 * number

def in_pool(method):
    with multiprocessing.get_context(method).Pool(2) as pool:
        return pool.map(doubled, range(3))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
async def test_a_task_may_start_a_pool(session: Session, method: str) -> None:
    """Though Dask's workers are daemonic; and its processes find functions of the script."""
    with script(SCRIPT) as main:
        task = ComputeTask(function=main.in_pool, args=(method,))
        await session.submit_tasks([task])
        assert (await task).return_value == [0, 2, 4]
