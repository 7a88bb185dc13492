"""Tasks on a real pilot on this machine: one pilot for all tests of the module."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from rhapsody.api import (
    CancelResult,
    ComputeTask,
    Resources,
    Session,
    TaskExecutionError,
    TaskState,
    UnsupportedError,
    WorkerLostError,
)
from rhapsody.backends import RadicalExecutionBackend
from rhapsody_radical.description import has_mpi

from .conftest import HANG, processes_of

pytestmark = [
    pytest.mark.engine("radical"),
    pytest.mark.slow,
    pytest.mark.timeout(2 * HANG),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pilot")


def handlers_of_signals() -> dict[int, object]:
    of_pytest = {signal.SIGINT, signal.SIGALRM}
    return {number: signal.getsignal(number) for number in signal.valid_signals() - of_pytest}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def session(folder: Path) -> AsyncIterator[Session]:
    handlers = handlers_of_signals()
    current, fork = Path.cwd(), os.fork
    async with Session(backends=[RadicalExecutionBackend(resources={"cores": 2})], work_dir=folder) as session:
        yield session
        began = time.monotonic()
    assert time.monotonic() - began < 30
    assert processes_of(folder) == []
    assert handlers_of_signals() == handlers
    assert (Path.cwd(), os.fork) == (current, fork)


async def run(session: Session, *tasks: ComputeTask) -> list[ComputeTask]:
    await session.submit_tasks(tasks)
    await session.wait_tasks(tasks)
    return list(tasks)


async def until_running(*tasks: ComputeTask) -> None:
    deadline = time.monotonic() + HANG
    while any(task.state is not TaskState.RUNNING for task in tasks):
        assert time.monotonic() < deadline, [task.state for task in tasks]
        assert not any(task.is_final for task in tasks), [(task.state, task.exception) for task in tasks]
        await asyncio.sleep(0.05)


def name_of_process() -> str:
    import multiprocessing

    return multiprocessing.current_process().name


async def add_later(left: int, right: int) -> int:
    await asyncio.sleep(0.01)
    return left + right


def refuse(word: str) -> None:
    raise LookupError(f"no {word} here")


async def test_executables_run_as_described(session: Session, tmp_path: Path) -> None:
    """Executables run as they are described."""
    odd = ["$HOME", "`date`", 'a "b"', "it's", "back\\slash"]
    echo, cat, pwd, env, line = await run(
        session,
        ComputeTask(executable="/usr/bin/printf", arguments=["%s|", *odd]),
        ComputeTask(executable="cat", stdin="from here\n"),
        ComputeTask(executable="pwd", cwd=tmp_path),
        ComputeTask(executable="printenv", arguments=["WORD"], environment={"WORD": 'say "$HOME"'}),
        ComputeTask(executable="echo one; echo two >&2; exit 3", shell=True),
    )
    assert echo.stdout == "".join(f"{word}|" for word in odd)
    assert cat.stdout == "from here\n"
    assert pwd.stdout == f"{tmp_path}\n"
    assert env.stdout == 'say "$HOME"\n'
    assert (line.state, line.exit_code, line.stdout, line.stderr) == (TaskState.FAILED, 3, "one\n", "two\n")
    assert isinstance(line.exception, TaskExecutionError)
    assert (echo.state, echo.exit_code, echo.ran_on) == (TaskState.DONE, 0, "localhost")
    assert echo.submitted_at is not None
    assert echo.started_at is not None
    assert echo.ended_at is not None
    assert echo.submitted_at <= echo.started_at <= echo.ended_at


async def test_tasks_have_the_callers_path(session: Session) -> None:
    """Tasks have the PATH of the process that submits them."""
    program, function = await run(
        session,
        ComputeTask(executable="printenv", arguments=["PATH"]),
        ComputeTask(function=os.getenv, args=("PATH",)),
    )
    assert (program.stdout or "").strip().endswith(os.environ["PATH"])
    assert function.return_value.endswith(os.environ["PATH"])


async def test_missing_executable_is_named(session: Session) -> None:
    """An executable that is missing is named."""
    [task] = await run(session, ComputeTask(executable="/no/such/program"))
    assert task.state is TaskState.FAILED
    assert "'/no/such/program': No such file or directory" in str(task.exception)


async def test_captured_output_in_sandbox(session: Session, folder: Path) -> None:
    """Captured output is in the session's sandbox."""
    [task] = await run(session, ComputeTask(executable="echo", arguments=["hello"], capture_stdio=True))
    assert task.stdout_path is not None
    assert Path(task.stdout_path).read_text() == "hello\n"
    assert Path(task.stdout_path).is_relative_to(folder)
    assert task.stdout is None


async def test_large_output_is_whole(session: Session) -> None:
    """All of a large output comes back."""
    [task] = await run(session, ComputeTask(executable="seq", arguments=[200000]))
    assert task.stdout is not None
    assert len(task.stdout.splitlines()) == 200000


async def test_pre_exec_and_post_exec(session: Session) -> None:
    """Commands before and after the executable are RADICAL-Pilot's own options."""
    options = {"pre_exec": ["export WORD=set"], "post_exec": "echo after"}
    [task] = await run(session, ComputeTask(executable="printenv", arguments=["WORD"], backend_options=options))
    assert task.stdout == "set\nafter\n"


async def test_task_has_its_cores(session: Session) -> None:
    """A task has the cores that it asks for."""
    wanted = Resources(cores_per_rank=2, memory=2**20)
    [task] = await run(session, ComputeTask(executable="printenv", arguments=["RP_CORES_PER_RANK"], resources=wanted))
    assert task.stdout == "2\n"


async def test_two_cores_run_two_tasks(session: Session, tmp_path: Path) -> None:
    """A pilot of two cores runs two tasks at once."""
    count = "touch %s/$$; sleep 1; ls %s | wc -l; rm %s/$$" % ((tmp_path,) * 3)
    tasks = await run(session, *[ComputeTask(executable=count, shell=True) for _ in range(6)])
    assert max(int(task.stdout or 0) for task in tasks) <= 2


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (ComputeTask(executable="true", backend_options={"pre_exce": []}), "did you mean 'pre_exec'"),
        (ComputeTask(executable="true", resources=Resources(cores_per_rank=64)), "wants 64 cores, and the pilot has 2"),
        (ComputeTask(executable="true", resources=Resources(gpus_per_rank=1)), "wants 1 GPUs, and the pilot has 0"),
    ],
)
async def test_unsupported_task_is_refused(session: Session, task: ComputeTask, said: str) -> None:
    """What the pilot cannot do is refused at submit."""
    with pytest.raises(UnsupportedError, match=said):
        await session.submit_tasks([task])


async def test_ranks_run_or_are_refused(session: Session) -> None:
    """Several ranks run under MPI, or are refused where there is none."""
    task = ComputeTask(executable="echo", arguments=["rank"], resources=Resources(ranks=2))
    if has_mpi():
        await run(session, task)
        assert task.stdout == "rank\nrank\n"
    else:
        with pytest.raises(UnsupportedError, match="neither mpirun nor mpiexec"):
            await session.submit_tasks([task])


async def test_functions_return_and_raise(session: Session) -> None:
    """Functions return and raise what they do here."""
    plain, awaited, bad, closure = await run(
        session,
        ComputeTask(function=abs, args=(-7,)),
        ComputeTask(function=add_later, args=(3,), kwargs={"right": 4}),
        ComputeTask(function=refuse, args=("luck",)),
        ComputeTask(function=lambda: name_of_process()),
    )
    assert (plain.return_value, awaited.return_value, closure.return_value) == (7, 7, "MainProcess")
    assert isinstance(bad.exception, LookupError)
    assert str(bad.exception) == "no luck here"


async def test_large_data_travels(session: Session) -> None:
    """Large arguments and results travel."""
    data = os.urandom(20 * 2**20)
    [task] = await run(session, ComputeTask(function=lambda value: value[::-1], args=(data,)))
    assert task.return_value == data[::-1]


async def test_unpicklable_function_fails_alone(session: Session) -> None:
    """A function that cannot be pickled fails alone."""
    import threading

    bad, good = await run(
        session, ComputeTask(function=print, args=(threading.Lock(),)), ComputeTask(function=abs, args=(-1,))
    )
    assert (bad.state, good.return_value) == (TaskState.FAILED, 1)
    assert "pickle" in str(bad.exception)


async def test_killed_process_fails_alone(session: Session) -> None:
    """A function that kills its process fails alone."""
    tasks = [ComputeTask(function=abs, args=(-1,)) for _ in range(20)]
    tasks.insert(10, ComputeTask(function=os._exit, args=(3,)))
    await run(session, *tasks)
    assert isinstance(tasks[10].exception, WorkerLostError)
    assert "exit code 3" in str(tasks[10].exception)
    assert {task.state for task in tasks if task is not tasks[10]} == {TaskState.DONE}


async def test_functions_share_batches(session: Session, folder: Path) -> None:
    """Many functions are few batches, and the loop stays free."""
    gaps: list[float] = []

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.01)
            gaps.append(time.perf_counter() - last)
            last = time.perf_counter()

    ticker = asyncio.create_task(tick())
    before = len(list(folder.glob("*/radical/radical.pilot.sandbox/*/pilot.0000/task.*")))
    tasks = await run(session, *[ComputeTask(function=abs, args=(-number,)) for number in range(2000)])
    ticker.cancel()
    batches = len(list(folder.glob("*/radical/radical.pilot.sandbox/*/pilot.0000/task.*"))) - before
    assert [task.return_value for task in tasks] == list(range(2000))
    assert batches < 100
    assert max(gaps) < 0.25 * 8  # of an idle machine; the benchmark measures it


async def test_results_precede_batch_end(session: Session) -> None:
    """Results arrive while their batch still runs."""
    await run(session, *[ComputeTask(function=time.sleep, args=(0.01,)) for _ in range(30)])
    tasks = [ComputeTask(function=time.sleep, args=(0.01,)) for _ in range(40)]
    await session.submit_tasks(tasks)
    for task in tasks:
        await task
    ends = sorted(task.ended_at or 0 for task in tasks)
    assert ends[-1] - ends[0] > 0.01


async def test_cancel_running_and_waiting(session: Session) -> None:
    """Running and waiting tasks are canceled."""
    tasks = [ComputeTask(executable="sleep", arguments=[600]) for _ in range(6)]
    await session.submit_tasks(tasks)
    deadline = time.monotonic() + HANG
    while sum(task.state is TaskState.RUNNING for task in tasks) < 2:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    results = await session.cancel_tasks(tasks)
    assert {task.state for task in tasks} == {TaskState.CANCELED}
    assert sorted(results.values()) == [CancelResult.NEVER_STARTED] * 4 + [CancelResult.STOPPED] * 2


async def test_stubborn_task_is_stopped(session: Session, tmp_path: Path) -> None:
    """A task that ignores SIGTERM is stopped."""
    trapped = tmp_path / "trapped"
    stubborn = ComputeTask(executable=f"trap '' TERM; touch {trapped}; while true; do sleep 0.1; done", shell=True)
    await session.submit_tasks([stubborn])
    await until_running(stubborn)
    while not trapped.exists():
        await asyncio.sleep(0.05)
    assert await session.cancel_tasks([stubborn]) == {stubborn.uid: CancelResult.STOPPED}


async def test_stopped_function_spares_others(session: Session) -> None:
    """A running function is stopped, and its neighbours run."""
    await run(session, *[ComputeTask(function=time.sleep, args=(0.01,)) for _ in range(30)])
    long = ComputeTask(function=time.sleep, args=(600,))
    others = [ComputeTask(function=time.sleep, args=(0.01,)) for _ in range(30)]
    await session.submit_tasks([long, *others])
    await until_running(long)
    assert await session.cancel_tasks([long]) == {long.uid: CancelResult.STOPPED}
    await session.wait_tasks(others)
    assert {task.state for task in others} == {TaskState.DONE}


async def test_canceled_function_spares_others(session: Session) -> None:
    """A function of a waiting batch is canceled, and its neighbours run."""
    await run(session, *[ComputeTask(function=time.sleep, args=(0.01,)) for _ in range(30)])
    ahead = [ComputeTask(executable="sleep", arguments=[600]) for _ in range(2)]
    await session.submit_tasks(ahead)
    await until_running(*ahead)
    functions = [ComputeTask(function=time.sleep, args=(0.01,)) for _ in range(30)]
    await session.submit_tasks(functions)
    assert await session.cancel_tasks(functions[:1]) == {functions[0].uid: CancelResult.NEVER_STARTED}
    await session.cancel_tasks(ahead)
    await session.wait_tasks(functions)
    assert [task.state for task in functions] == [TaskState.CANCELED, *[TaskState.DONE] * 29]


async def test_terminal_stays_quiet(session: Session, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is written to the terminal."""
    await run(session, ComputeTask(executable="echo", arguments=["hello"]), ComputeTask(function=print, args=("hi",)))
    assert capfd.readouterr() == ("", "")
