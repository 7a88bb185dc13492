"""Where streams take their items from: slow, asynchronous and failing sources."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from rhapsody.api import ComputeTask, InvalidTaskError, Session

from ..local import local

pytestmark = pytest.mark.usefixtures("leaves_nothing")


def double(value: int) -> int:
    return 2 * value


async def numbers(count: int, fails: bool = False) -> AsyncIterator[int]:
    for number in range(count):
        await asyncio.sleep(0)
        yield number
    if fails:
        raise LookupError("the source")


def as_tasks(session: Session, values: Any) -> Any:
    if hasattr(values, "__aiter__"):
        return session.as_completed({"function": double, "args": (value,)} async for value in values)
    return session.as_completed({"function": double, "args": (value,)} for value in values)


async def test_items_are_submitted_as_they_come() -> None:
    """An iterator that blocks holds up neither the loop nor the results of what it has yielded."""
    release = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        release.wait(30)
        yield 2

    async with local() as session:
        for results in (session.map(double, source()), as_tasks(session, source())):
            release.clear()
            first = await anext(results)  # while the source blocks
            release.set()
            rest = [value async for value in results]
            assert [getattr(value, "return_value", value) for value in (first, *rest)] == [2, 4]


async def test_sources_may_be_asynchronous() -> None:
    """map and as_completed take asynchronous generators, map beside others too."""
    async with local() as session:
        assert [value async for value in session.map(double, numbers(300))] == [2 * n for n in range(300)]
        both = session.map(pow, numbers(5), iter([2, 2, 2]))
        assert [value async for value in both] == [0, 1, 4]
        ended = [task.return_value async for task in as_tasks(session, numbers(300))]
    assert sorted(ended) == [2 * n for n in range(300)]


@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
async def test_a_failed_source_loses_no_result(kind: str) -> None:
    """What was taken before the source raised is yielded, and then its error is raised."""

    def failing() -> Iterator[int]:
        yield from range(50)
        raise LookupError("the source")

    async with local() as session:
        for stream in (lambda source: session.map(double, source), lambda source: as_tasks(session, source)):
            seen = []
            with pytest.raises(LookupError, match="the source"):  # noqa: PT012  # the loop is what raises
                async for value in stream(failing() if kind == "plain" else numbers(50, fails=True)):
                    seen.append(getattr(value, "return_value", value))
            assert sorted(seen) == [2 * n for n in range(50)]


async def test_bad_tasks_come_after_good_ones() -> None:
    """A task that is refused ends the stream once those that were submitted before are yielded."""

    def source() -> Iterator[Any]:
        yield ComputeTask(function=double, args=(1,))
        ended.wait(30)
        yield {"nonsense": 1}

    ended = threading.Event()
    async with local() as session:
        results = session.as_completed(source())
        assert (await anext(results)).return_value == 2
        ended.set()
        with pytest.raises(InvalidTaskError):
            await anext(results)


@pytest.mark.parametrize("large", ["arguments", "results"])
async def test_bytes_bound_what_is_in_flight(large: str) -> None:
    """A source of large items, or of small ones with large results, is advanced only as their bytes have room."""
    taken = 0

    def source() -> Iterator[Any]:
        nonlocal taken
        for _ in range(400):
            taken += 1
            yield bytes(10_000) if large == "arguments" else 10_000

    function = len if large == "arguments" else bytes
    async with local() as session:
        results = session.map(function, source(), in_flight_bytes=100_000, in_flight=8 if large == "results" else 200)
        for seen in range(400):
            await anext(results)
            assert taken <= seen + 14


async def test_endless_sources_end_with_the_stream() -> None:
    """Leaving a stream closes its asynchronous source, and lets the thread of a plain one end."""
    closed = []

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0)
        finally:
            closed.append(True)

    def forever() -> Iterator[int]:
        while True:
            yield 1

    async with local() as session:
        for source in (endless(), forever()):
            results = session.map(double, source, in_flight=10)
            assert await anext(results) == 2
            await results.aclose()
    assert closed == [True]
