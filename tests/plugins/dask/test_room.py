"""Threads and memory of a Dask worker are shared out among the batches that run on it."""

from __future__ import annotations

import threading
import time

import pytest
from rhapsody.api import ComputeTask, Resources, Session, TaskState, UnsupportedError
from rhapsody.backends import DaskExecutionBackend
from rhapsody_dask.room import WorkerRoom, devices_of

pytestmark = [pytest.mark.engine("dask"), pytest.mark.timeout(240)]


def took() -> tuple[float, float]:
    began = time.time()
    time.sleep(0.1)
    return began, time.time()


def test_room_is_never_overbooked() -> None:
    """Whatever asks, the threads and the memory held together are at most the worker's, and all get theirs."""
    room, lock = WorkerRoom(4, 100), threading.Lock()
    held, seen = [0, 0], []

    def run(cores: int, memory: int) -> None:
        with room.taken(cores, memory):
            with lock:
                held[0] += cores
                held[1] += memory
                seen.append(tuple(held))
            time.sleep(0.001)
            with lock:
                held[0] -= cores
                held[1] -= memory

    wanted = [(1 + number % 4, number * 7 % 100) for number in range(60)]
    threads = [threading.Thread(target=run, args=want) for want in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(seen) == 60
    assert max(cores for cores, _ in seen) <= 4
    assert max(memory for _, memory in seen) <= 100


def test_gpus_are_shared_out_by_name() -> None:
    """Whole GPUs are each one batch's, shares are packed, and what has no room waits."""
    room = WorkerRoom(8, 0, ["2", "5"])
    with room.taken(1, 0, 0.5) as half, room.taken(1, 0, 0.5) as other, room.taken(1, 0, 1) as whole:
        assert half == other == {"CUDA_VISIBLE_DEVICES": "2", "ROCR_VISIBLE_DEVICES": "2"}
        assert whole["CUDA_VISIBLE_DEVICES"] == "5"
        waiting = threading.Thread(target=lambda: room.taken(1, 0, 0.25).__enter__())
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
    waiting.join(30)
    assert not waiting.is_alive()
    with pytest.raises(RuntimeError, match="needs 3 GPUs, and its worker sees 2, 5"):
        room.taken(1, 0, 3).__enter__()


@pytest.mark.parametrize(
    ("amount", "variables", "place", "names"),
    [
        (0, {"CUDA_VISIBLE_DEVICES": "3"}, 0, []),
        (2, {}, 0, ["0", "1"]),
        (1, {}, 1, ["1"]),
        (1.5, {"ROCR_VISIBLE_DEVICES": "4, 6"}, 0, ["4", "6"]),
        (1, {"CUDA_VISIBLE_DEVICES": "4,6"}, 1, ["6"]),
        (1, {"CUDA_VISIBLE_DEVICES": "7"}, 1, ["7"]),
    ],
)
def test_devices_of_a_worker(amount: float, variables: dict[str, str], place: int, names: list[str]) -> None:
    """A worker's GPUs are those that its variables name, or numbers; workers of one machine have different ones."""
    assert devices_of(amount, variables, place) == names


def test_plain_batches_do_not_wait() -> None:
    """Without a large one there is nothing to wait for, however many run: some may have left their threads."""
    room = WorkerRoom(1, 0)
    with room.taken(1, 0), room.taken(1, 0):
        pass


def test_too_large_for_the_worker_is_an_error() -> None:
    """A batch that the worker could never run fails, and does not wait for ever."""
    with pytest.raises(RuntimeError, match="needs 2 threads and 0 bytes of memory of its worker, which has 1 and 0"):
        WorkerRoom(1, 0).taken(2, 0).__enter__()


async def test_large_tasks_have_the_worker() -> None:
    """A task of all threads runs beside no other, plain ones included; one that is too large is refused at once."""
    backend = DaskExecutionBackend(resources={"n_workers": 1, "threads_per_worker": 2, "memory_limit": "1GiB"})
    async with Session(backends=[backend]) as session:
        large = [ComputeTask(function=took, resources=Resources(cores_per_rank=2)) for _ in range(3)]
        rich = [ComputeTask(function=took, resources=Resources(memory="700 MiB")) for _ in range(2)]
        plain = [ComputeTask(function=took) for _ in range(4)]
        tasks = [task for group in zip(large, [*rich, *plain[:1]], plain[1:], strict=True) for task in group]
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks, timeout=60)
        for fields in ({"cores_per_rank": 3}, {"memory": "2 GiB"}):
            with pytest.raises(UnsupportedError, match="no worker has"):
                await session.submit_tasks([ComputeTask(function=took, resources=Resources(**fields))])
    assert {task.state for task in tasks} == {TaskState.DONE}
    for alone, others in ((large, tasks), (rich, rich)):
        for one in alone:
            began, ended = one.return_value
            beside = [other for other in others if other is not one]
            assert all(other.return_value[1] <= began or other.return_value[0] >= ended for other in beside)
