"""The order in which tasks of different priorities leave the backlog."""

from __future__ import annotations

import asyncio
import itertools
import threading

import pytest
from rhapsody.api import ComputeTask, InvalidTaskError, Session, TaskState
from rhapsody.scheduling.backlog import Backlog
from rhapsody.scheduling.priorities import OLDEST_EVERY, PriorityQueue

from tests.core.local import local
from tests.core.puppet import Puppet, held

_clock = itertools.count(1.0)


def tasks(*priorities: int) -> list[ComputeTask]:
    made = [ComputeTask(function=int, priority=priority) for priority in priorities]
    for task in made:
        task.submitted_at = next(_clock)
    return made


def test_highest_priority_leaves_first() -> None:
    """The highest priority leaves first, and tasks of one priority in order of submission."""
    low, high, plain, second_high = tasks(-1, 5, 0, 5)
    queue = PriorityQueue([low, high, plain, second_high])
    assert queue[0] is high
    assert list(queue) == [high, second_high, plain, low]
    assert [queue.popleft() for _ in range(4)] == [high, second_high, plain, low]
    assert not len(queue)
    with pytest.raises(IndexError):
        queue.popleft()


def test_lowest_priority_does_not_starve() -> None:
    """However many urgent tasks come, every tenth that leaves is the one that waits longest."""
    old = tasks(0, -3, 0)
    queue = PriorityQueue(old)
    left = []
    for _ in range(4 * OLDEST_EVERY):
        queue.extend(tasks(7, 7))
        left.append(queue.popleft())
    assert [left.index(task) for task in old] == [OLDEST_EVERY * turn - 1 for turn in (1, 2, 3)]


def test_returned_tasks_go_before_their_priority() -> None:
    """What an engine gives back is before the others of its priority, in its old order."""
    first, second, high = tasks(0, 0, 1)
    queue = PriorityQueue([first, second, high])
    taken = [queue.popleft() for _ in range(2)]
    assert taken == [high, first]
    queue.extendleft(reversed(taken))
    assert list(queue) == [high, first, second]


def test_backlog_orders_what_waits_already() -> None:
    """The first task with a priority overtakes those that wait; peek and take agree, also where some were canceled."""
    backlog = Backlog()
    plain = tasks(0, 0, 0)
    backlog.add(plain)
    urgent = tasks(2)
    backlog.add(urgent, by_priority=True)
    assert (len(backlog), backlog.peek()) == (4, urgent[0])
    assert backlog.take(2) == [urgent[0], plain[0]]
    assert backlog.take_while(lambda task: task is plain[1]) == [plain[1]]
    assert backlog.drain() == [plain[2]]


async def test_session_runs_by_priority() -> None:
    """Tasks go to the engine by priority, whenever they were submitted."""
    backend = Puppet()
    backend.units = 1
    async with Session(backends=[backend]) as session:
        first, plain, last, urgent = tasks(0, 0, -1, 3)
        await session.submit_tasks([first, last, plain])
        await session.submit_tasks([urgent])
        for count, task in enumerate((first, urgent, plain, last), 1):
            await held(backend, count)
            backend.finish(task)
        await session.wait_tasks()
    assert backend.tasks == [first, urgent, plain, last]


async def test_late_urgent_task_overtakes_on_threads() -> None:
    """An urgent task goes before those that the threads hold and have not begun, and so do all that follow."""
    order: list[str] = []
    release = threading.Event()
    async with local("threads", 1) as session:
        first = ComputeTask(function=release.wait, args=(30,))
        plain = [ComputeTask(function=order.append, args=("plain",)) for _ in range(500)]
        await session.submit_tasks([first, *plain])
        while first.state is TaskState.QUEUED:
            await asyncio.sleep(0.001)
        urgent = [ComputeTask(function=order.append, args=(f"urgent {n}",), priority=5) for n in range(2)]
        for task in urgent:
            await session.submit_tasks([task])
        while not session.explain(plain[-1]).startswith(f"task {plain[-1].uid} waits"):
            await asyncio.sleep(0.001)
        release.set()
        await session.wait_tasks(timeout=30)
    assert order[:2] == ["urgent 0", "urgent 1"]
    assert len(order) == 502


@pytest.mark.parametrize("priority", [1.5, "high", True, None])
def test_priority_is_a_whole_number(priority: object) -> None:
    """A priority that is no whole number is refused where the task is described."""
    with pytest.raises(InvalidTaskError, match="task 'urgent': priority must be a whole number, not"):
        ComputeTask(function=int, uid="urgent", priority=priority)  # type: ignore[arg-type]
