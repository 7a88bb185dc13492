"""The messages between the user's process and the workers."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

from rhapsody_dragon.far import PROGRESS, Reporter
from rhapsody_dragon.messages import PART, Joiner, Kind, send


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
        return [(unit, kind, bytes(data)) for _, unit, kind, data in filter(None, whole)]


def progress_file(folder: Path) -> Path:
    path = folder / "progress"
    path.write_bytes(bytes(PROGRESS.size))
    return path


def test_a_small_frame_is_one_message() -> None:
    outbox = Outbox()
    send(outbox, 1, 2, Kind.FRAME, b"abc")
    assert len(outbox.messages) == 1
    assert outbox.read() == [(2, Kind.FRAME, b"abc")]


def test_a_large_frame_travels_in_parts_and_arrives_whole() -> None:
    outbox, data = Outbox(), bytes(range(256)) * (2 * PART // 256 + 1)
    send(outbox, 1, 2, Kind.FRAME, data)
    assert max(map(len, outbox.messages)) == PART
    assert outbox.read() == [(2, Kind.FRAME, data)]


def test_the_parts_of_two_senders_are_not_mixed() -> None:
    one, other, joiner = Outbox(), Outbox(), Joiner()
    send(one, 1, 7, Kind.FRAME, b"a" * (PART + 1))
    send(other, 2, 8, Kind.FRAME, b"b" * (PART + 1))
    mixed = [message for pair in zip(one.messages, other.messages, strict=True) for message in pair]
    whole = [joiner.feed(message) for message in mixed]
    assert [bytes(item[3]) for item in whole if item] == [b"a" * (PART + 1), b"b" * (PART + 1)]


def test_the_parts_of_a_sender_that_died_are_dropped() -> None:
    outbox, joiner = Outbox(), Joiner()
    send(outbox, 1, 7, Kind.FRAME, b"a" * (PART + 1))
    joiner.feed(outbox.messages[0])
    joiner.forget(1)
    assert len(joiner.feed(outbox.messages[1])[3]) < PART


def test_a_message_waits_for_memory_and_is_put_once() -> None:
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


def test_the_first_frame_is_sent_at_once_and_close_ones_together(tmp_path: Path) -> None:
    outbox = Outbox()
    reporter = Reporter(0, outbox, str(progress_file(tmp_path)))
    reporter.begin(5)
    for uid in "abc":
        assert reporter.claim(uid)
        reporter.report(uid.encode())
    reporter.end(b"")
    frames = [data for _, kind, data in outbox.read() if kind is Kind.FRAME]
    assert frames[0] == b"a"
    assert b"".join(frames) == b"abc"
    assert outbox.read()[-1][1] is Kind.END


def test_a_frame_that_is_held_back_is_sent_while_the_next_task_runs(tmp_path: Path) -> None:
    outbox = Outbox()
    reporter = Reporter(0, outbox, str(progress_file(tmp_path)))
    reporter.begin(5)
    reporter.report(b"first")
    outbox.arrived.clear()
    reporter.report(b"second")
    assert outbox.arrived.wait(10)
    assert b"second" in outbox.messages[-1]


def test_progress_counts_the_tasks_that_have_begun(tmp_path: Path) -> None:
    path = progress_file(tmp_path)
    reporter = Reporter(0, Outbox(), str(path))
    reporter.begin(5)
    reporter.claim("a")
    reporter.report(b"")
    reporter.claim("b")
    assert PROGRESS.unpack(path.read_bytes()) == (5, 2)


def test_a_task_that_is_left_out_is_not_begun_and_said_to_be_so(tmp_path: Path) -> None:
    outbox = Outbox()
    reporter = Reporter(0, outbox, str(progress_file(tmp_path)))
    reporter.begin(5)
    reporter.claim("a")
    reporter.leave_out(5, "a")
    reporter.leave_out(5, "b")
    reporter.leave_out(4, "c")
    assert outbox.read() == [(5, Kind.LEFT_OUT, b"b")]
    assert not reporter.claim("b")


def test_a_worker_that_has_gone_on_is_not_killed_for_an_earlier_task(tmp_path: Path) -> None:
    reporter = Reporter(0, Outbox(), str(progress_file(tmp_path)))
    reporter.begin(5)
    reporter.claim("a")
    reporter.report(b"")
    reporter.claim("b")
    reporter.die("a")  # would be the end of this process


def test_a_worker_ends_itself_for_the_task_that_it_runs_or_in_any_case() -> None:
    script = """
from rhapsody_dragon.far import Reporter
reporter = Reporter(0, None, None)
reporter.die("another")
print("alive", flush=True)
reporter.die("")
print("still alive", flush=True)
"""
    worker = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert worker.stdout == "alive\n"
    assert worker.returncode == -signal.SIGKILL
