"""The event channel: from any thread, in order, with one wake-up for many events."""

from __future__ import annotations

import asyncio
import threading

import pytest
from rhapsody.model.outcome import Started
from rhapsody.seam.channel import EVENTS_PER_TURN, Event, EventChannel


def _numbered(first: int, count: int) -> list[Event]:
    return [Started(str(number), 0.0) for number in range(first, first + count)]


def _put_a_thousand(channel: EventChannel, base: int) -> None:
    for number in range(1000):
        channel.put(_numbered(base + number, 1))


async def _read(channel: EventChannel, wanted: int) -> list[str]:
    seen: list[str] = []

    def apply(events: list[Event]) -> None:
        seen.extend(event.uid for event in events if isinstance(event, Started))
        if len(seen) >= wanted:
            channel.close()

    await channel.serve(apply)
    return seen


async def test_events_keep_thread_order() -> None:
    """Events arrive in the order of each thread."""
    channel = EventChannel(asyncio.get_running_loop())
    threads = [threading.Thread(target=_put_a_thousand, args=(channel, base)) for base in (0, 10_000, 20_000)]
    for thread in threads:
        thread.start()
    seen = [int(uid) for uid in await _read(channel, 3000)]
    for thread in threads:
        thread.join()
    for base in (0, 10_000, 20_000):
        assert [number for number in seen if base <= number < base + 1000] == list(range(base, base + 1000))


async def test_many_events_wake_the_loop_once() -> None:
    """Many events wake the loop once."""
    loop = asyncio.get_running_loop()
    channel = EventChannel(loop)
    wakes = 0
    call = loop.call_soon_threadsafe

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal wakes
        wakes += 1
        return call(*args, **kwargs)  # type: ignore[arg-type]

    loop.call_soon_threadsafe = counted  # type: ignore[assignment, method-assign]
    for number in range(100):
        channel.put(_numbered(number, 1))
    assert wakes == 1
    assert len(channel.take()) == 100
    channel.put(_numbered(100, 1))
    assert wakes == 2


async def test_loop_turn_takes_bounded_events() -> None:
    """One turn of the loop takes a bounded number of events."""
    channel = EventChannel(asyncio.get_running_loop())
    channel.put(_numbered(0, 3 * EVENTS_PER_TURN))
    sizes: list[int] = []
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while len(sizes) < 3:
            turns += 1
            await asyncio.sleep(0)

    ticker = asyncio.ensure_future(tick())
    channel.close()
    await channel.serve(lambda events: sizes.append(len(events)))
    await ticker
    assert sizes == [EVENTS_PER_TURN] * 3
    assert turns >= 2  # between the three


async def test_reader_that_raises_is_reported() -> None:
    """What the reader raises is raised where the end is awaited, and nothing more is read."""
    channel = EventChannel(asyncio.get_running_loop())
    channel.put(_numbered(0, 1))

    def apply(events: list[Event]) -> None:
        raise LookupError(len(events))

    with pytest.raises(LookupError, match="1"):
        await channel.serve(apply)
    channel.put(_numbered(1, 1))
    await asyncio.sleep(0)
    assert len(channel.take()) == 1


async def test_events_before_close_are_read() -> None:
    """What was put before the close is still read."""
    channel = EventChannel(asyncio.get_running_loop())
    channel.put(_numbered(0, 3))
    channel.close()
    channel.put(_numbered(3, 3))
    assert await _read(channel, 99) == ["0", "1", "2"]


def test_channel_outlives_its_loop() -> None:
    """A channel outlives its loop silently."""
    loop = asyncio.new_event_loop()
    channel = EventChannel(loop)
    loop.close()
    channel.put(_numbered(0, 1))
    channel.put(_numbered(1, 1))
    channel.close()
