"""The messages between the user's process and the workers."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rhapsody.worker import read_progress
from rhapsody_dragon.messages import PART, Joiner, Kind, send
from rhapsody_dragon.worker_main import BatchReporter, Reports


class Outbox:
    """Stands for a Dragon queue: keeps what is put."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.arrived = threading.Event()

    def put(self, message: bytes, timeout: float | None = None) -> None:
        self.messages.append(message)
        self.arrived.set()

    def read(self) -> list[tuple[int, Kind, bytes]]:
        joiner = Joiner()
        whole = [joiner.feed(message) for message in self.messages]
        return [(batch, kind, bytes(data)) for _, batch, kind, data in filter(None, whole)]


def test_a_small_frame_is_one_message() -> None:
    """What fits into a part is sent as it is."""
    outbox = Outbox()
    send(outbox, 1, 2, Kind.FRAME, b"abc")
    assert len(outbox.messages) == 1
    assert outbox.read() == [(2, Kind.FRAME, b"abc")]


def test_a_large_frame_travels_in_parts() -> None:
    """It arrives whole, and no message is larger than a part."""
    outbox, data = Outbox(), bytes(range(256)) * (2 * PART // 256 + 1)
    send(outbox, 1, 2, Kind.FRAME, data)
    assert max(map(len, outbox.messages)) == PART
    assert outbox.read() == [(2, Kind.FRAME, data)]


def test_parts_of_two_senders_are_not_mixed() -> None:
    """Each frame is put together from the parts of its own sender."""
    one, other, joiner = Outbox(), Outbox(), Joiner()
    send(one, 1, 7, Kind.FRAME, b"a" * (PART + 1))
    send(other, 2, 8, Kind.FRAME, b"b" * (PART + 1))
    mixed = [message for pair in zip(one.messages, other.messages, strict=True) for message in pair]
    whole = [joiner.feed(message) for message in mixed]
    assert [bytes(item[3]) for item in whole if item] == [b"a" * (PART + 1), b"b" * (PART + 1)]


def test_parts_of_a_dead_sender_are_dropped() -> None:
    """Its successor's message does not begin with them."""
    outbox, joiner = Outbox(), Joiner()
    send(outbox, 1, 7, Kind.FRAME, b"a" * (PART + 1))
    joiner.feed(outbox.messages[0])
    joiner.forget(1)
    whole = joiner.feed(outbox.messages[1])
    assert whole is not None
    assert len(whole[3]) < PART


def test_a_message_waits_for_memory() -> None:
    """A message is put once there is room in the pool, and once only."""
    from dragon.managed_memory import DragonPoolAllocationNotAvailable

    class Full(Outbox):
        tries = 0

        def put(self, message: bytes, timeout: float | None = None) -> None:
            self.tries += 1
            if self.tries < 3:
                raise DragonPoolAllocationNotAvailable(0, "the pool is full")
            super().put(message)

    outbox = Full()
    send(outbox, 1, 2, Kind.FRAME, b"abc")
    assert outbox.read() == [(2, Kind.FRAME, b"abc")]


def files(record: Path) -> tuple[str, str]:
    """Return where the records of workers are, and what they keep of frames."""
    return str(record), f"{record}.frames"


def reporter_of(outbox: Any, record: Path | None, batch: int = 5) -> BatchReporter:
    reporter = Reports(0, outbox, None if record is None else files(record)).batch(batch)
    assert reporter is not None
    return reporter


def test_close_frames_are_sent_together(tmp_path: Path) -> None:
    """The first frame is sent at once, and those that follow closely in one message."""
    outbox = Outbox()
    reporter = reporter_of(outbox, tmp_path / "record")
    for uid in "abc":
        assert reporter.claim(uid)
        reporter.report(uid.encode())
    reporter.end(b"")
    assert outbox.read() == [(5, Kind.FRAME, b"a"), (5, Kind.FRAME, b"bc")]


def test_a_held_frame_is_sent_soon(tmp_path: Path) -> None:
    """A frame that is held back is sent while the next task runs."""
    outbox = Outbox()
    reporter = reporter_of(outbox, tmp_path / "record")
    reporter.report(b"first")
    outbox.arrived.clear()
    reporter.report(b"second")
    assert outbox.arrived.wait(10)
    assert b"second" in outbox.messages[-1]


def test_the_record_counts_begun_tasks(tmp_path: Path) -> None:
    """The user's side reads from it what a dead worker had begun."""
    reporter = reporter_of(Outbox(), tmp_path / "record")
    reporter.claim("a")
    reporter.report(b"")
    reporter.claim("b")
    assert read_progress(tmp_path / "record") == {5: 2}


def test_reported_tasks_end_their_batch(tmp_path: Path) -> None:
    """The frame of the last task of a batch is its end; a message more would cost as much again."""
    outbox = Outbox()
    reporter = reporter_of(outbox, tmp_path / "record")
    reporter.claim("a")
    reporter.report(b"a")
    reporter.end(b"")
    assert outbox.read() == [(5, Kind.FRAME, b"a")]


def test_an_unreported_task_ends_in_END(tmp_path: Path) -> None:
    """A batch of which a task has no frame is over all the same."""
    outbox = Outbox()
    reporter = reporter_of(outbox, tmp_path / "record")
    reporter.claim("a")
    reporter.end(b"")
    assert outbox.read() == [(5, Kind.END, b"")]


def test_starts_are_reported_without_record() -> None:
    """A worker on another node reports that a task has begun, and holds no frame back."""
    outbox = Outbox()
    reporter = reporter_of(outbox, None)
    for uid in "ab":
        reporter.claim(uid)
        reporter.report(b"1")
    assert [kind for _, kind, _ in outbox.read()] == [Kind.BEGUN, Kind.FRAME] * 2


def test_a_waiting_task_is_left_out(tmp_path: Path) -> None:
    """A canceled task that has not begun never does, also of a batch that has yet to arrive; what ended did."""
    outbox = Outbox()
    reports = Reports(0, outbox, files(tmp_path / "record"))
    reporter = reports.batch(5)
    assert reporter is not None
    reporter.claim("a")
    reporter.report(b"")
    outbox.messages.clear()
    reporter.cancel("a", kills=True)  # would be the end of this process if it still ran
    reporter.cancel("b", kills=True)
    assert not reporter.claim("b")
    ahead = reports.batch(6)
    assert ahead is not None
    ahead.cancel("c", kills=True)
    assert outbox.read() == [(5, Kind.LEFT_OUT, b"b"), (6, Kind.LEFT_OUT, b"c")]
    assert reports.batch(6) is ahead
    assert reports.batch(5) is None


def test_what_has_not_begun_is_given_back(tmp_path: Path) -> None:
    """While a task runs, all after it; between two tasks, all but the next, which may be believed to run."""
    outbox = Outbox()
    reporter = reporter_of(outbox, tmp_path / "record")
    assert reporter.claim("a")
    reporter.give_back(["a", "d"])
    reporter.report(b"frame")
    reporter.give_back(["b", "c"])
    assert [data for _, kind, data in outbox.read() if kind is Kind.GIVEN_BACK] == [b"d", b"c"]
    assert [reporter.claim(uid) for uid in "bcd"] == [True, False, False]


def test_a_running_executable_is_stopped(tmp_path: Path) -> None:
    """The worker lives on, and learns that it is this task that runs."""
    reporter = reporter_of(Outbox(), tmp_path / "record")
    reporter.claim("a")
    assert reporter.cancel("a", kills=False)
    assert not reporter.cancel("b", kills=False)


def test_a_worker_that_has_gone_on_lives(tmp_path: Path) -> None:
    """A request for an earlier task does not meet the one that runs now."""
    reporter = reporter_of(Outbox(), tmp_path / "record")
    reporter.claim("a")
    reporter.report(b"")
    reporter.claim("b")
    reporter.cancel("a", kills=True)  # would be the end of this process


@pytest.mark.parametrize("ending", ["reporter.cancel('a', kills=True)", "reports.die()"])
def test_a_worker_ends_itself(ending: str, tmp_path: Path) -> None:
    """By SIGKILL, for the function that it runs, or whatever it runs."""
    script = f"""
from rhapsody_dragon.worker_main import Reports
reports = Reports(0, None, {files(tmp_path / "record")!r})
reporter = reports.batch(5)
reporter.claim("a")
print("alive", flush=True)
{ending}
print("still alive", flush=True)
"""
    worker = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert worker.stdout == "alive\n"
    assert worker.returncode == -signal.SIGKILL
