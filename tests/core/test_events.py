"""The event channel: from any thread, in order, with one wake-up for many events."""

from __future__ import annotations

import asyncio
import threading

from rhapsody.events import EVENTS_PER_TURN, Event, EventChannel, Started


def _numbered(first: int, count: int) -> list[Event]:
    return [Started(str(number), 0.0) for number in range(first, first + count)]


async def _read(channel: EventChannel, wanted: int) -> list[str]:
    seen: list[str] = []
    async for events in channel.stream():
        seen += [event.uid for event in events if isinstance(event, Started)]
        if len(seen) >= wanted:
            channel.close()
    return seen


async def test_events_arrive_in_the_order_of_each_thread() -> None:
    channel = EventChannel(asyncio.get_running_loop())
    threads = [
        threading.Thread(target=lambda base=base: [channel.put(_numbered(base + i, 1)) for i in range(1000)])
        for base in (0, 10_000, 20_000)
    ]
    for thread in threads:
        thread.start()
    seen = [int(uid) for uid in await _read(channel, 3000)]
    for thread in threads:
        thread.join()
    for base in (0, 10_000, 20_000):
        assert [number for number in seen if base <= number < base + 1000] == list(range(base, base + 1000))


async def test_many_events_wake_the_loop_once() -> None:
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


async def test_a_turn_of_the_loop_takes_a_bounded_number_of_events() -> None:
    channel = EventChannel(asyncio.get_running_loop())
    channel.put(_numbered(0, 3 * EVENTS_PER_TURN))
    sizes, turns = [], 0

    async def tick() -> None:
        nonlocal turns
        while len(sizes) < 3:
            turns += 1
            await asyncio.sleep(0)

    ticker = asyncio.ensure_future(tick())
    async for events in channel.stream():
        sizes.append(len(events))
        if len(sizes) == 3:
            break
    await ticker
    assert sizes == [EVENTS_PER_TURN] * 3
    assert turns >= 3


async def test_what_was_put_before_the_close_is_still_read() -> None:
    channel = EventChannel(asyncio.get_running_loop())
    channel.put(_numbered(0, 3))
    channel.close()
    channel.put(_numbered(3, 3))
    assert await _read(channel, 99) == ["0", "1", "2"]


def test_a_channel_outlives_its_loop_in_silence() -> None:
    loop = asyncio.new_event_loop()
    channel = EventChannel(loop)
    loop.close()
    channel.put(_numbered(0, 1))
    channel.put(_numbered(1, 1))
    channel.close()
