"""Worker processes that die, at every moment of their lives, and units that are canceled at every moment of theirs."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from rhapsody.api import (
    BackendLostError,
    CancelResult,
    ComputeTask,
    Session,
    SubmitError,
    TaskState,
    WorkerLostError,
)
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.backends._pool_member import Member

pytestmark = pytest.mark.usefixtures("leaves_nothing")


def processes(max_workers: int = 2, **options: Any) -> Session:
    return Session(
        backends=[ConcurrentExecutionBackend("pool", executor="processes", max_workers=max_workers, **options)]
    )


async def run(session: Session, *tasks: ComputeTask) -> tuple[ComputeTask, ...]:
    await session.submit_tasks(tasks)
    await session.wait_tasks(tasks, timeout=60)
    return tasks


async def running(*tasks: ComputeTask) -> None:
    while any(task.state is not TaskState.RUNNING for task in tasks):
        assert not any(task.is_final for task in tasks)
        await asyncio.sleep(0.005)


def pid_of(task: ComputeTask) -> int:
    return int(str(task.ran_on).rpartition(":")[2])


DEATHS = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "os._exit": lambda: os._exit(5),
    "a segfault": lambda: ctypes.string_at(0),
    "closing every descriptor": lambda: os.closerange(3, 256) or os._exit(1),
}


@pytest.mark.parametrize("how", DEATHS)
async def test_a_death_while_running_fails_that_task_and_no_other(how: str) -> None:
    async with processes() as session:
        bad = ComputeTask(function=DEATHS[how])
        good = [ComputeTask(function=pow, args=(i, 2)) for i in range(200)]
        await run(session, *good[:100], bad, *good[100:])
        assert [task.return_value for task in good] == [i * i for i in range(200)]
        with pytest.raises(WorkerLostError, match=rf"{bad.uid}.*'pool'"):
            await bad


async def test_a_death_in_the_middle_of_a_unit_fails_one_task_and_runs_no_other_twice(tmp_path: Path) -> None:
    def mark(i: int) -> int:
        (tmp_path / f"{i}.{time.monotonic_ns()}").touch()
        if i == 500:
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    async with processes(1, batching={"target": 60}) as session:
        tasks = await run(session, *(ComputeTask(function=mark, args=(i,)) for i in range(1000)))
    assert [i for i, task in enumerate(tasks) if task.state is not TaskState.DONE] == [500]
    assert isinstance(tasks[500].exception, WorkerLostError)
    assert sorted(int(path.name.partition(".")[0]) for path in tmp_path.iterdir()) == list(range(1000))


async def test_a_worker_killed_while_idle_is_replaced_and_nothing_fails() -> None:
    async with processes() as session:
        for _ in range(5):
            tasks = await run(session, *(ComputeTask(function=time.sleep, args=(0.02,)) for _ in range(4)))
            for pid in {pid_of(task) for task in tasks}:
                os.kill(pid, signal.SIGKILL)
            tasks = await run(session, *(ComputeTask(function=pow, args=(2, 2)) for _ in range(4)))  # at once
            assert {task.return_value for task in tasks} == {4}


async def test_a_worker_killed_while_it_sends_its_result_fails_that_task_and_no_other(tmp_path: Path) -> None:
    release = tmp_path / "release"

    def large() -> bytes:
        while not release.exists():
            time.sleep(0.005)
        return bytes(50 * 2**20)

    async with processes(1) as session:
        task, after = ComputeTask(function=large), ComputeTask(function=os.getpid)
        await session.submit_tasks([task, after])
        await running(task)
        release.touch()
        time.sleep(0.7)  # nobody reads: it stands in the middle of its result
        os.kill(pid_of(task), signal.SIGKILL)
        with pytest.raises(WorkerLostError, match="signal 9"):
            await task
        assert (await after).return_value != pid_of(task)


async def test_a_killed_worker_is_noticed_though_a_process_that_its_task_left_holds_the_line(tmp_path: Path) -> None:
    def fork_and_wait() -> None:
        if not ctypes.CDLL(None).fork():  # as a library does it, unseen by the interpreter
            os.setsid()
            time.sleep(600)
        (tmp_path / "forked").touch()
        time.sleep(600)

    async with processes(1) as session:
        task = ComputeTask(function=fork_and_wait)
        await session.submit_tasks([task])
        await running(task)
        while not (tmp_path / "forked").exists():
            await asyncio.sleep(0.01)
        os.kill(pid_of(task), signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            await asyncio.wait_for(task, 30)
        await run(session, ComputeTask(function=int))


async def test_a_fork_that_returns_into_the_worker_reports_nothing() -> None:
    async with processes(1) as session:
        tasks = await run(session, *(ComputeTask(function=lambda: os.fork() >= 0) for _ in range(3)))
        assert [task.return_value for task in tasks] == [True, True, True]
        assert (await run(session, ComputeTask(function=pow, args=(2, 5))))[0].return_value == 32


async def test_workers_that_never_come_up_lose_the_backend_and_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rhapsody.backends._processes._BOOT", "raise SystemExit(41)")
    async with processes() as session:
        tasks = [ComputeTask(function=int) for _ in range(10)]
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks, timeout=60)
        for task in tasks:
            with pytest.raises(BackendLostError, match=r"'pool'.*exit code 41"):
                await task
        with pytest.raises(BackendLostError):
            await session.submit_tasks([ComputeTask(function=int)])


# -- cancel against everything else ------------------------------------------------------------------------------------


async def test_cancel_kills_the_task_that_it_means_and_never_its_neighbour() -> None:
    def briefly(i: int) -> int:
        time.sleep(0.001)
        return i

    async with processes(2, batching={"target": 0.05}) as session:
        outcomes: dict[CancelResult, int] = {}
        for _ in range(12):
            tasks = [ComputeTask(function=briefly, args=(i,)) for i in range(150)]
            await session.submit_tasks(tasks)
            doomed = tasks[::7]
            while not any(task.is_final for task in tasks):
                await asyncio.sleep(0.001)
            results = await session.cancel_tasks(doomed)
            await session.wait_tasks(tasks, timeout=60)
            for i, task in enumerate(tasks):
                if task in doomed:
                    outcomes[results[task.uid]] = outcomes.get(results[task.uid], 0) + 1
                    stopped = results[task.uid] in (CancelResult.NEVER_STARTED, CancelResult.STOPPED)
                    assert task.state is (TaskState.CANCELED if stopped else TaskState.DONE), (results[task.uid], task)
                else:
                    assert (task.state, task.return_value) == (TaskState.DONE, i)
        assert CancelResult.CANNOT_STOP not in outcomes
        assert outcomes[CancelResult.NEVER_STARTED]


@pytest.mark.parametrize("started", [False, True])
async def test_all_tasks_of_a_unit_that_are_canceled_together_stay_canceled(started: bool, tmp_path: Path) -> None:
    def mark(i: int, seconds: float) -> None:
        (tmp_path / str(i)).touch()
        time.sleep(seconds)

    async with processes(1, batching={"target": 1000}) as session:
        await run(session, *(ComputeTask(function=mark, args=(-1, 0)) for _ in range(64)))  # it is known to be short
        tasks = [ComputeTask(function=mark, args=(i, 600)) for i in range(20)]
        await session.submit_tasks(tasks)
        if started:
            await running(tasks[0])
        results = await session.cancel_tasks([*tasks, *tasks])  # each named twice
        assert {task.state for task in tasks} == {TaskState.CANCELED}
        assert set(results.values()) <= {CancelResult.NEVER_STARTED, CancelResult.STOPPED}
        ran = {path.name for path in tmp_path.iterdir()} - {"-1"}
        assert ran <= {"0"}
        after = await run(session, ComputeTask(function=int))
        assert after[0].state is TaskState.DONE


async def test_a_task_canceled_twice_at_once_is_counted_once_and_the_others_run() -> None:
    release = threading.Event()
    async with Session(backends=[ConcurrentExecutionBackend(max_workers=1)]) as session:
        blocker = ComputeTask(function=release.wait, args=(60,))
        waiting = [ComputeTask(function=pow, args=(i, 1)) for i in range(10_000)]
        await session.submit_tasks([blocker, *waiting])
        last = waiting[-1]  # beyond what the threads hold: it is in the backlog
        await asyncio.gather(session.cancel_tasks([last, last]), session.cancel_tasks([last]))
        release.set()
        await session.wait_tasks(waiting, timeout=60)
        assert sum(task.state is TaskState.DONE for task in waiting) == 9_999


async def test_an_executable_can_be_stopped_from_the_moment_that_it_is_running() -> None:
    async with Session(backends=[ConcurrentExecutionBackend(max_workers=2)]) as session:
        for _ in range(30):
            task = ComputeTask(executable="sleep", arguments=[600])
            await session.submit_tasks([task])
            while task.state is TaskState.QUEUED:
                await asyncio.sleep(0)
            assert await session.cancel_tasks([task]) == {task.uid: CancelResult.STOPPED}
            assert task.state is TaskState.CANCELED


async def test_a_cancel_that_is_itself_canceled_leaves_the_session_usable(tmp_path: Path) -> None:
    async with Session(backends=[ConcurrentExecutionBackend(max_workers=1)]) as session:
        deaf = tmp_path / "deaf"
        task = ComputeTask(executable=f"trap '' TERM; touch {deaf}; sleep 600", shell=True)
        await session.submit_tasks([task])
        while not deaf.exists():
            await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.cancel_tasks([task]), 0.05)
        await session.wait_tasks([task], timeout=60)
        assert task.state is TaskState.CANCELED
        await run(session, ComputeTask(function=int))


async def test_a_cancel_that_is_itself_canceled_does_not_leave_a_worker_halted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Member, "_is_still", lambda _: False)  # as where a machine is slow to halt it
    async with processes(1) as session:
        task = ComputeTask(function=time.sleep, args=(1,))
        await session.submit_tasks([task])
        await running(task)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.cancel_tasks([task]), 0.1)
        await session.wait_tasks([task], timeout=30)
        assert task.state is TaskState.DONE


async def test_a_worker_is_halted_when_it_is_killed_though_another_cancel_of_its_task_was_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_still, kill = Member._is_still, Member.kill
    found: list[str] = []

    def look_and_kill(member: Member) -> None:
        found.append(psutil.Process(member.process.pid).status())
        kill(member)

    monkeypatch.setattr(Member, "_is_still", lambda _: False)
    monkeypatch.setattr(Member, "kill", look_and_kill)
    async with processes(1) as session:
        task = ComputeTask(function=time.sleep, args=(600,))
        await session.submit_tasks([task])
        await running(task)
        given_up = asyncio.create_task(session.cancel_tasks([task]))
        other = asyncio.create_task(session.cancel_tasks([task]))
        await asyncio.sleep(0.05)
        given_up.cancel()
        await asyncio.wait([given_up])
        monkeypatch.setattr(Member, "_is_still", is_still)
        assert await other == {task.uid: CancelResult.STOPPED}
        assert found[0] == psutil.STATUS_STOPPED


# -- executors of the caller's -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cancel_futures", [False, True])
async def test_an_executor_that_its_owner_shuts_down_loses_no_task(cancel_futures: bool) -> None:
    release = threading.Event()
    executor = ThreadPoolExecutor(1)
    async with Session(backends=[ConcurrentExecutionBackend(executor=executor)]) as session:
        executor.submit(release.wait, 60)  # of the owner's own: ours wait behind it
        tasks = [ComputeTask(function=pow, args=(i, 2)) for i in range(100)]
        await session.submit_tasks(tasks)
        executor.shutdown(wait=False, cancel_futures=cancel_futures)
        release.set()
        await session.wait_tasks(tasks, timeout=60)
        if cancel_futures:
            assert {type(task.exception) for task in tasks} == {SubmitError}
        else:
            assert [task.return_value for task in tasks] == [i * i for i in range(100)]
        (late,) = await run(session, ComputeTask(function=int))
        assert isinstance(late.exception, SubmitError)
    executor.shutdown()


async def test_a_thread_pool_whose_initializer_fails_fails_the_tasks_and_hangs_nobody() -> None:
    def initialize() -> None:
        raise RuntimeError("no license")

    with ThreadPoolExecutor(2, initializer=initialize) as executor:
        async with Session(backends=[ConcurrentExecutionBackend(executor=executor)]) as session:
            tasks = await run(session, *(ComputeTask(function=int) for _ in range(10)))
            assert {type(task.exception) for task in tasks} == {SubmitError}


async def test_a_process_pool_of_the_caller_that_breaks_fails_what_it_held_and_says_so() -> None:
    with ProcessPoolExecutor(2) as executor:
        async with Session(backends=[ConcurrentExecutionBackend(executor=executor)]) as session:
            (bad,) = await run(session, ComputeTask(function=os._exit, args=(1,)))
            assert isinstance(bad.exception, WorkerLostError)
            (late,) = await run(session, ComputeTask(function=int))
            assert isinstance(late.exception, SubmitError)
    del executor, bad, late
    gc.collect()  # a broken pool of the standard library closes its pipes no earlier


async def test_units_that_the_owner_of_an_executor_cancels_are_not_lost() -> None:
    release = threading.Event()

    class Pool(ThreadPoolExecutor):
        """Not taken for a pool of threads: units travel as bytes."""

    pool = Pool(1)
    held: list[Any] = []

    class Wrapped(ProcessPoolExecutor):
        def __init__(self) -> None:
            self._max_workers = 1

        def submit(self, *args: Any, **kwargs: Any) -> Any:
            held.append(pool.submit(*args, **kwargs))
            return held[-1]

    pool.submit(release.wait, 60)
    async with Session(backends=[ConcurrentExecutionBackend(executor=Wrapped())]) as session:
        tasks = [ComputeTask(function=pow, args=(i, 2)) for i in range(4)]
        await session.submit_tasks(tasks)
        assert held[0].cancel()
        release.set()
        await session.wait_tasks(tasks, timeout=60)
        assert [task.return_value for task in tasks] == [0, 1, 4, 9]
    pool.shutdown()


async def test_a_close_does_not_wait_for_a_pool_that_pauses_before_its_next_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rhapsody.backends._processes._BOOT", "raise SystemExit(41)")
    monkeypatch.setattr("rhapsody.backends._processes._PAUSES", (600.0,))
    session = processes(1)
    await session.submit_tasks([ComputeTask(function=int)])
    await asyncio.sleep(0.3)
    await asyncio.wait_for(session.close(wait=False), 60)


async def test_a_word_to_a_dead_worker_does_not_drown_what_it_had_sent_and_nothing_runs_twice(tmp_path: Path) -> None:
    sizes = {0: 340_000, 1: 340_000, 2: 340_000, 3: 40_000}  # the page is full, and the results of 3 and 4 go by line

    def mark(i: int) -> bytes:
        (tmp_path / f"{i}.{time.monotonic_ns()}").touch()
        time.sleep(0.001 if i != 5 else 600)
        return bytes(sizes.get(i, 0))

    async with processes(1, batching={"target": 60}) as session:
        known = await run(session, *(ComputeTask(function=mark, args=(-1,)) for _ in range(130)))  # to be short
        tasks = [ComputeTask(function=mark, args=(i,)) for i in range(100)]
        await session.submit_tasks(tasks)
        last = tasks[0]._unit.tasks[-1]
        assert last not in tasks[:6]
        while not list(tmp_path.glob("0.*")):  # the worker has the unit
            await asyncio.sleep(0)
        while not list(tmp_path.glob("5.*")):  # from here on nobody reads what it sends
            time.sleep(0.005)
        os.kill(pid_of(known[0]), signal.SIGKILL)
        while psutil.Process(pid_of(known[0])).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.005)
        await session.cancel_tasks([last])  # the write fails, before anything is read
        await session.wait_tasks(tasks, timeout=60)
    runs = [int(path.name.partition(".")[0]) for path in tmp_path.iterdir()]
    assert [i for i in range(100) if runs.count(i) != 1] == [tasks.index(last)]
    assert last.state is TaskState.CANCELED
    assert [task for task in tasks if isinstance(task.exception, WorkerLostError)] == [tasks[5]]


async def submit_in_large_units(session: Session, calls: list[ComputeTask]) -> None:
    warm = [ComputeTask(function=_value, args=(0, 0.0, 0)) for _ in range(400)]
    await run(session, *warm)  # so that the function is known to be short
    await session.submit_tasks(calls)
    assert len(calls[0]._unit) > 40


def _value(i: int, seconds: float, size: int) -> tuple[int, bytes]:
    time.sleep(seconds)
    if i < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return i, bytes(size)


async def test_a_result_is_told_while_a_long_call_follows_it_in_the_unit() -> None:
    async with processes(1, batching={"target": 100.0}) as session:
        calls = [ComputeTask(function=_value, args=(i, 0.0, 0)) for i in range(100)]
        calls.append(ComputeTask(function=_value, args=(100, 5.0, 0)))
        await submit_in_large_units(session, calls)
        await session.wait_tasks(calls[:100], timeout=60)
        assert calls[0]._unit is None
        assert not calls[100].is_final
        await session.cancel_tasks([calls[100]])
        assert [task.return_value[0] for task in calls[:100]] == list(range(100))


async def test_a_unit_with_more_results_than_a_page_holds_keeps_each_and_their_order() -> None:
    async with processes(1, batching={"target": 100.0}) as session:
        sizes = [i * 613 % 70_000 if i % 3 else 17 for i in range(300)]
        calls = [ComputeTask(function=_value, args=(i, 0.0, size)) for i, size in enumerate(sizes)]
        await submit_in_large_units(session, calls)
        await session.wait_tasks(calls, timeout=60)
        assert [task.return_value for task in calls] == [(i, bytes(size)) for i, size in enumerate(sizes)]


async def test_results_that_no_note_has_told_of_outlive_their_worker() -> None:
    async with processes(1, batching={"target": 100.0}) as session:
        calls = [ComputeTask(function=_value, args=(i, 0.0, 0)) for i in (*range(300), -1, *range(300, 310))]
        await submit_in_large_units(session, calls)
        await session.wait_tasks(calls, timeout=60)
        lost = [task for task in calls if task.state is TaskState.FAILED]
        assert [task.args[0] for task in lost] == [-1]
        assert isinstance(lost[0].exception, WorkerLostError)
        assert [task.return_value[0] for task in calls if task is not lost[0]] == list(range(310))
        assert all(task.attempt == 1 for task in calls)
