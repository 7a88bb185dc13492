"""What `submit_tasks` takes: lists at once, and generators as there is room."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Iterator

import pytest
from rhapsody.api import ComputeTask, DuplicateTaskError, InvalidTaskError, SessionError, TaskState

from tests.core.local import local

MANY = 25_000
MOST = 10_000  # that have not ended, at any time


class Source:
    """Makes tasks, and counts how many there are."""

    def __init__(self) -> None:
        self.alive = self.most = 0

    def __call__(self, count: int) -> Iterator[ComputeTask]:
        for _ in range(count):
            task = ComputeTask(function=int)
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(task, self._gone)
            yield task
            del task

    async def later(self, count: int) -> AsyncIterator[ComputeTask]:
        for task in self(count):
            yield task

    def _gone(self) -> None:
        self.alive -= 1


@pytest.mark.parametrize("is_async", [False, True])
async def test_long_generator_stays_in_bounds(is_async: bool) -> None:
    """Of a long generator few tasks exist at a time; all run, and the last ones have futures."""
    source = Source()
    async with local() as session:
        futures = await session.submit_tasks(source.later(MANY) if is_async else source(MANY))
        assert len(futures) == MANY
        assert source.most < 1.2 * MOST
        await session.wait_tasks(timeout=60)
        assert repr(futures) == f"<futures of {MANY} tasks, {MANY} ended>"
        assert (await futures[-1]).state is TaskState.DONE
        with pytest.raises(SessionError, match="task 0 of a generator of 25000 had ended before"):
            futures[0]
        with pytest.raises(IndexError):
            futures[MANY]
    assert session._recorder.tally_of("concurrent").tasks == MANY


async def test_short_generator_is_as_a_list() -> None:
    """A short generator's tasks have all their futures, and are accepted together or not at all."""
    async with local() as session:
        futures = await session.submit_tasks(ComputeTask(function=abs, args=(-n,)) for n in range(200))
        assert [(await future).return_value for future in futures] == [*range(200)]
        good = ComputeTask(function=int)
        with pytest.raises(InvalidTaskError):
            await session.submit_tasks(item for item in (good, "no task"))  # type: ignore[misc]  # what is refused
        assert good.state is TaskState.NEW


async def test_generator_may_await_its_tasks() -> None:
    """An asynchronous generator may await a task that it has yielded; all have their futures."""
    async with local() as session:

        async def one_after_the_other() -> AsyncIterator[ComputeTask]:
            value = 1
            for _ in range(5):
                task = ComputeTask(function=int.__add__, args=(value, value))
                yield task
                value = (await task).return_value

        futures = await session.submit_tasks(one_after_the_other())
        assert [(await future).return_value for future in futures] == [2, 4, 8, 16, 32]


@pytest.mark.parametrize("how", ["refused", "raised"])
async def test_late_error_spares_what_was_accepted(how: str) -> None:
    """Where a later task is refused, or the generator raises, the error says how many were accepted; these run."""
    taken: list[ComputeTask] = []

    async def source() -> AsyncIterator[ComputeTask]:
        for _ in range(3):
            taken.append(ComputeTask(function=int))
            yield taken[-1]
        await taken[-1]
        if how == "raised":
            raise LookupError("no more")
        yield taken[0]

    async with local() as session:
        with pytest.raises(LookupError if how == "raised" else DuplicateTaskError) as error:
            await session.submit_tasks(source())
        await session.wait_tasks(timeout=30)
    assert "the 3 tasks that the generator had yielded before were accepted" in error.value.__notes__
    assert {task.state for task in taken} == {TaskState.DONE}
