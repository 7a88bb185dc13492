"""The tasks that wait for one backend."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, islice
from operator import attrgetter
from typing import Final

from rhapsody.model.resources import Resources
from rhapsody.model.room import Need, Room
from rhapsody.model.states import FINAL_STATES
from rhapsody.model.task import ComputeTask
from rhapsody.scheduling.priorities import OLDEST_EVERY, PriorityQueue

_SAMPLE: Final = 64  # waiting tasks that are read, to know what waits
_HORIZON: Final = 2_000  # waiting tasks among which they are chosen
_HEADS: Final = 64  # queues among which the next task is chosen, so that a decision costs the same whatever waits
_resources_of: Final = attrgetter("resources")
_order_of: Final = attrgetter("order")
_priority_of: Final = attrgetter("priority")
_Kind = tuple[Resources | None, int]  # of tasks that share a queue: their resources and priority
_PLAIN: Final[_Kind] = (None, 0)


class Queue:
    """Waiting tasks of equal resources and priority, in order; canceled ones are passed over.

    Attributes:
        resources: what each of them asks for; None for nothing.
        priority: of each of them.
        waiting: how many there are.
        order: the number of the first; the smaller, the earlier it came.
        need: what each takes of a machine of a size; None where it is too small. The placement's.
    """

    def __init__(self, resources: Resources | None = None, priority: int = 0) -> None:
        self.resources = resources
        self.priority = priority
        self.need: tuple[Room, Need | None] | None = None
        self.waiting = 0
        self.order = 0
        self._tasks: deque[ComputeTask] | PriorityQueue = deque()  # the latter where it holds several priorities
        self._runs: deque[list[int]] = deque()  # of tasks that came together: the number of the first, and how many

    @property
    def head(self) -> ComputeTask:
        """The first task."""
        tasks = self._tasks
        while tasks[0].state in FINAL_STATES:
            tasks.popleft()
            self._count_off(1)
        return tasks[0]

    def clear(self) -> None:
        """Forget the canceled tasks, of a queue in which no other waits."""
        self._tasks.clear()
        self._runs.clear()

    def order_by_priority(self) -> None:
        """From now on, hold tasks of several priorities."""
        if isinstance(self._tasks, deque):
            self._tasks = PriorityQueue(self._tasks)

    def append(self, number: int, tasks: Sequence[ComputeTask]) -> None:
        """Put tasks at the end; they are numbered from `number`."""
        self._tasks.extend(tasks)
        self._runs.append([number, len(tasks)])
        self.order = self._runs[0][0]
        self.waiting += len(tasks)

    def prepend(self, number: int, tasks: Sequence[ComputeTask]) -> None:
        """Put tasks at the front, in order; they are numbered from `number`."""
        self._tasks.extendleft(reversed(tasks))
        self._runs.appendleft([number, len(tasks)])
        self.order = number
        self.waiting += len(tasks)

    def take(self, count: int) -> list[ComputeTask]:
        """Take up to `count` tasks off the front."""
        tasks = self._tasks
        before = len(tasks)
        taken: list[ComputeTask] = []
        while len(taken) < count and tasks:
            task = tasks.popleft()
            if task.state not in FINAL_STATES:
                taken.append(task)
        self._count_off(before - len(tasks), len(taken))
        return taken

    def take_while(self, wanted: Callable[[ComputeTask], bool], count: int | None) -> list[ComputeTask]:
        """Take tasks off the front until one is not wanted, which stays, or there are `count`."""
        tasks = self._tasks
        before = len(tasks)
        taken: list[ComputeTask] = []
        while tasks and len(taken) != count:
            task = tasks[0]
            if task.state in FINAL_STATES:
                tasks.popleft()
            elif wanted(task):
                tasks.popleft()
                taken.append(task)
            else:
                break
        self._count_off(before - len(tasks), len(taken))
        return taken

    def sample(self) -> list[ComputeTask]:
        """Return some of the tasks, evenly spaced among those at the front."""
        reach = min(len(self._tasks), _HORIZON)
        sample = list(islice(self._tasks, 0, reach, max(1, reach // _SAMPLE)))
        return [task for task in sample if task.state not in FINAL_STATES]

    def _count_off(self, left: int, taken: int = 0) -> None:
        self.waiting -= taken
        while left:
            run = self._runs[0]
            step = min(left, run[1])
            run[0] += step
            run[1] -= step
            left -= step
            if not run[1]:
                self._runs.popleft()
        if self._runs:
            self.order = self._runs[0][0]


class Backlog:
    """The tasks that wait for one backend, by priority and in order of submission; canceled ones are passed over.

    Where core packs the tasks, those of equal resources and priority have a queue of their own, so that passing over
    one that has no room costs nothing for each task behind it; `rhapsody_batch` then sees the one queue that is
    offered.

    Attributes:
        slots: tasks that the engine runs at the same time.
        free: slots that no batch in flight takes.
        waiting: tasks, of all queues.
        has_priorities: whether any task ever had one.
    """

    def __init__(self) -> None:
        self.slots = 1
        self.free = 1
        self.waiting = 0
        self._plain = Queue()
        self._queues: dict[_Kind, Queue] = {}  # all but the plain one; none is empty
        self._is_split = False
        self.has_priorities = False
        self._until_oldest = OLDEST_EVERY - 1  # tasks that leave by priority before the oldest does
        self._offered = self._plain
        self._limit: int | None = None
        self._taken: list[ComputeTask] = []
        self._first = self._next = 0  # the number of the first task, and of the next one that comes

    def __len__(self) -> int:
        """Return how many tasks wait."""
        return self._offered.waiting

    def peek(self) -> ComputeTask:
        """Return the first task that waits.

        Raises:
            IndexError: none does.
        """
        return self._offered.head

    def take(self, count: int) -> list[ComputeTask]:
        """Take up to `count` tasks off the front. What is taken must be returned from `rhapsody_batch`."""
        return self._off(self._offered.take(count if self._limit is None else min(count, self._limit)))

    def take_while(self, wanted: Callable[[ComputeTask], bool]) -> list[ComputeTask]:
        """Take tasks off the front until one is not wanted, which stays."""
        return self._off(self._offered.take_while(wanted, self._limit))

    def sample(self) -> list[ComputeTask]:
        """Return some of the tasks that wait, evenly spaced among those at the front."""
        return self._offered.sample()

    # -- the flow's ------------------------------------------------------------------------------------------------

    @property
    def is_plain(self) -> bool:
        """Whether no task waits that asks for resources, or nobody asks for the difference."""
        return not self._queues

    def heads(self) -> list[Queue]:
        """Return the queues whose first tasks may go next, in the order of these: 64 at most, whatever waits."""
        found = list(islice(self._queues.values(), _HEADS))
        if self._plain.waiting:
            found.append(self._plain)
        found.sort(key=_order_of)
        if self.has_priorities and self._until_oldest:
            found.sort(key=_priority_of, reverse=True)
        return found

    def offer(self, queue: Queue | None = None, limit: int | None = None) -> None:
        """Have `rhapsody_batch` choose from one queue, by default the plain one, and take `limit` tasks at most."""
        self._offered = self._plain if queue is None else queue
        self._limit = limit

    def split(self) -> None:
        """From now on, have a queue for the tasks of equal resources."""
        if not self._is_split:
            self._is_split = True
            tasks, self._plain = self._plain.take(self._plain.waiting), Queue()
            self._offered = self._plain
            self.waiting -= len(tasks)
            self.add(tasks)

    def add(self, tasks: Sequence[ComputeTask], *, by_priority: bool = False) -> None:
        """Put tasks at the end, or behind those of their priority where one of them may have one."""
        if by_priority and not self.has_priorities:
            self.has_priorities = True
            if not self._is_split:
                self._plain.order_by_priority()
        for queue, alike in self._by_queue(tasks):
            queue.append(self._next, alike)
            self._next += len(alike)

    def put_back(self, tasks: Sequence[ComputeTask]) -> None:
        """Put tasks at the front, in order."""
        self._first -= len(tasks)
        number = self._first + len(tasks)
        for queue, alike in reversed(self._by_queue(tasks)):
            number -= len(alike)
            queue.prepend(number, alike)

    def forget(self, tasks: Iterable[ComputeTask]) -> None:
        """Count off tasks that were canceled while they waited; they leave when their turn comes."""
        for task in tasks:
            queue = self._queue_of(self._kind_of(task))
            queue.waiting -= 1
            self.waiting -= 1
            self._drop_if_empty(queue)

    def remove(self, queue: Queue) -> list[ComputeTask]:
        """Take all tasks of a queue, which are not going to the engine."""
        tasks = queue.take(queue.waiting)
        self.waiting -= len(tasks)
        self._drop_if_empty(queue)
        return tasks

    def taken(self) -> list[ComputeTask]:
        """Return what was taken since this was last called."""
        taken, self._taken = self._taken, []
        return taken

    def drain(self) -> list[ComputeTask]:
        """Take everything."""
        self._taken = []
        return [task for queue in (self._plain, *self._queues.values()) for task in self.remove(queue)]

    def _off(self, taken: list[ComputeTask]) -> list[ComputeTask]:
        self.waiting -= len(taken)
        self._taken += taken
        queue = self._offered
        if self.has_priorities:
            self._until_oldest = (self._until_oldest or OLDEST_EVERY) - 1
        if len(self._queues) > _HEADS and queue is not self._plain:  # let others among the heads
            kind = queue.resources, queue.priority
            self._queues[kind] = self._queues.pop(kind)
        self._drop_if_empty(queue)
        return taken

    def _by_queue(self, tasks: Sequence[ComputeTask]) -> list[tuple[Queue, Sequence[ComputeTask]]]:
        """Group tasks that follow one another by the queue that they belong to, and count them."""
        self.waiting += len(tasks)
        if not tasks:
            return []
        if not self._is_split or (not self.has_priorities and set(map(_resources_of, tasks)) == {None}):
            return [(self._plain, tasks)]
        groups = [(kind, list(alike)) for kind, alike in groupby(tasks, self._kind_of)]
        return [(self._queue_of(kind), alike) for kind, alike in groups]

    def _kind_of(self, task: ComputeTask) -> _Kind:
        return task.resources, task.priority if self.has_priorities else 0

    def _queue_of(self, kind: _Kind) -> Queue:
        if kind == _PLAIN or not self._is_split:
            return self._plain
        queue = self._queues.get(kind)
        if queue is None:
            queue = self._queues[kind] = Queue(*kind)
        return queue

    def _drop_if_empty(self, queue: Queue) -> None:
        if queue.waiting:
            return
        queue.clear()
        if queue is not self._plain:
            del self._queues[queue.resources, queue.priority]
        if queue is self._offered:
            self._offered = self._plain
