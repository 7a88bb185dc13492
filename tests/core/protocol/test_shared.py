"""Large arguments, and values that are shared by a handle: stored once, and mapped by the workers."""

from __future__ import annotations

import functools
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rhapsody.api import ComputeTask, Retry, Session, Shared
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.plugin import FileStore
from rhapsody.protocol.shared import LARGE, load

from ..local import KINDS, local, run

pytestmark = pytest.mark.usefixtures("leaves_nothing")
SIZE = LARGE // 8 + 1  # numbers in an array that is large


class Counted:
    """Counts how often it is pickled."""

    def __init__(self) -> None:
        self.data = bytes(LARGE)
        self.pickled = 0

    def __len__(self) -> int:
        return len(self.data)

    def __reduce__(self) -> Any:
        self.pickled += 1
        return bytes, (self.data,)


@dataclass
class Holder:
    array: Any


class Batch:
    tasks = ()


def add(array: Any, number: float) -> float:
    array[0] += number
    return float(array[0])


def read(value: Any) -> Any:
    array = value["a"][0].array if isinstance(value, dict) else value
    return float(array[0]), os.getpid(), id(array), array.flags.writeable


async def test_large_arguments_are_stored_once() -> None:
    """Tasks that were submitted with one object pickle it once, whatever their batches."""
    value = Counted()
    await run(local("processes"), *(ComputeTask(function=len, args=(value,)) for _ in range(12)))
    assert value.pickled == 1


async def test_a_changed_argument_travels_anew() -> None:
    """What is changed between two submits arrives as it was at each."""
    array = np.zeros(SIZE)
    async with local("processes") as session:
        for number in (1.0, 2.0):
            array[0] = number
            task = ComputeTask(function=add, args=(array, 0.0))
            await session.submit_tasks([task])
            assert (await task).return_value == number


async def test_tasks_write_to_their_own_copies() -> None:
    """A task may change a large array, which no other task and not the program sees."""
    array = np.zeros(SIZE)
    tasks = await run(local("processes"), *(ComputeTask(function=add, args=(array, 1.0)) for _ in range(6)))
    assert [task.return_value for task in tasks] == [1.0] * 6
    assert array[0] == 0


async def test_functions_may_be_large() -> None:
    """What a partial, a method or a closure holds is stored as arguments are."""
    array = np.arange(SIZE, dtype=float)
    held = Counted()
    tasks = [ComputeTask(function=functools.partial(add, array), args=(1.0,)), ComputeTask(function=lambda: array[2])]
    function = functools.partial(len, held)
    await run(local("processes"), *tasks, *(ComputeTask(function=function) for _ in range(6)))
    assert [task.return_value for task in tasks] == [1.0, 2.0]
    assert held.pickled == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_handles_arrive_as_values(kind: str) -> None:
    """A handle among arguments, also within lists, dicts and dataclasses, is replaced; in a closure it has a value."""
    array = np.arange(SIZE, dtype=float)
    async with local(kind) as session:
        handle = session.share(array)
        nested = {"a": [Holder(handle)]}
        tasks = [ComputeTask(function=read, args=(value,)) for value in (handle, nested) * 3]
        tasks += [ComputeTask(function=lambda: handle.value[1]), ComputeTask(function=read, kwargs={"value": handle})]
        await session.submit_tasks(tasks)
        await session.wait_tasks()
    found = [task.return_value for task in tasks]
    assert found.pop(6) == 1.0
    assert {value for value, *_ in found} == {0.0}
    assert len({(pid, identity) for _, pid, identity, _ in found}) <= 2, "loaded once in a process"
    assert {writeable for *_, writeable in found} == {kind == "threads"}
    assert nested["a"][0].array is handle


async def test_handles_reach_a_fallback() -> None:
    """A task that falls back from processes to threads is given the value there too."""

    def fails_there(value: list[int]) -> list[int]:
        if os.getpid() != home:
            raise OSError("not here")
        return value

    home, value = os.getpid(), [1, 2]
    backends = [
        ConcurrentExecutionBackend("processes", "there", 1),
        ConcurrentExecutionBackend(name="here", max_workers=1),
    ]
    async with Session(backends) as session:
        task = ComputeTask(function=fails_there, args=(session.share(value),), retries=Retry(2, fallback="here"))
        await session.submit_tasks([task])
        assert (await task).return_value is value


async def test_a_handle_travels_without_a_store() -> None:
    """A worker of an executor that is given, which has no store, is sent the value with the handle."""
    handle = Shared([1, 2])
    assert pickle.loads(pickle.dumps(handle)).value == [1, 2]


def test_a_store_keeps_what_batches_use(tmp_path: Path) -> None:
    """Equal content is one file, which goes with the store; what a batch has use for is never dropped."""
    for store in (FileStore(), FileStore(tmp_path / "stored")):
        batch = Batch()
        arrays = [np.zeros(SIZE), np.zeros(SIZE)]
        found = store.store([(array, 0.0) for array in arrays], batch)
        (first, second) = found.values()
        assert first == second
        assert load(first).nbytes == arrays[0].nbytes
        assert store.keys_of(batch) == [first[0]]
        assert store.store([(bytes(10), 0.0)], batch) == {}
        store.close()
        with pytest.raises(FileNotFoundError):
            load(first)
    assert not list(tmp_path.iterdir())
