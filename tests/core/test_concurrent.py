"""The local backend: functions in threads, processes and executors of the caller's; executables beside them."""

from __future__ import annotations

import asyncio
import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rhapsody import worker
from rhapsody.api import (
    BackendConfigurationError,
    CancelResult,
    ComputeTask,
    Session,
    TaskCanceledError,
    TaskExecutionError,
    TaskState,
)
from rhapsody.backends import ConcurrentExecutionBackend

pytestmark = pytest.mark.usefixtures("leaves_nothing")
KINDS = ["threads", "processes"]


def local(executor: str | Executor | None = None, max_workers: int | None = 2) -> Session:
    return Session(backends=[ConcurrentExecutionBackend(executor=executor, max_workers=max_workers)])


async def run(session: Session, *tasks: ComputeTask) -> tuple[ComputeTask, ...]:
    async with session:
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks, timeout=60)
    return tasks


# -- functions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_functions_of_every_kind_return_their_values(kind: str) -> None:
    offset = 10

    class Adder:
        def __init__(self, base: int) -> None:
            self.base = base

        def add(self, x: int) -> int:
            return self.base + x

        def __call__(self, x: int) -> int:
            return self.base * x

    async def later(x: int) -> int:
        await asyncio.sleep(0.01)
        return x + offset

    tasks = await run(
        local(kind),
        ComputeTask(function=lambda x: x + offset, args=(1,)),
        ComputeTask(function=later, args=(1,)),
        ComputeTask(function=Adder(5).add, args=(1,)),
        ComputeTask(function=Adder(5), args=(3,)),
        ComputeTask(function=max, args=([3, 9, 2],), kwargs={"key": lambda x: -x}),
        ComputeTask(function=dict, kwargs={"a": 1}),
    )
    assert [task.return_value for task in tasks] == [11, 11, 6, 15, 2, {"a": 1}]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_function_s_own_exception_comes_back(kind: str) -> None:
    class OwnError(Exception):
        pass

    def fail() -> None:
        raise OwnError("with a message")

    (task,) = await run(local(kind), ComputeTask(function=fail))
    assert task.state is TaskState.FAILED
    with pytest.raises(OwnError, match="with a message"):
        await task
    if kind == "processes":
        assert "in fail" in str(task.exception.__cause__)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), StopIteration(), asyncio.CancelledError()])
async def test_what_would_end_the_interpreter_or_the_loop_only_fails_the_task(kind: str, raised: BaseException) -> None:
    def fail() -> None:
        raise raised

    bad, good = await run(local(kind, 1), ComputeTask(function=fail), ComputeTask(function=os.getpid))
    assert good.state is TaskState.DONE
    with pytest.raises(TaskExecutionError, match=type(raised).__name__):
        await bad


async def test_async_functions_share_a_loop_of_their_worker() -> None:
    async def loop_id() -> tuple[int, int]:
        return threading.get_ident(), id(asyncio.get_running_loop())

    tasks = await run(local("threads", 2), *(ComputeTask(function=loop_id) for _ in range(50)))
    places = {task.return_value for task in tasks}
    assert len(places) <= len({thread for thread, _ in places}) + 2


async def test_processes_run_beside_the_program_and_beside_each_other() -> None:
    def where() -> int:
        time.sleep(0.05)
        return os.getpid()

    tasks = await run(local("processes", 2), *(ComputeTask(function=where) for _ in range(8)))
    pids = {task.return_value for task in tasks}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert {int(str(task.ran_on).rpartition(":")[2]) for task in tasks} == pids


async def test_a_worker_has_the_import_path_of_the_program_without_what_is_no_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", [tmp_path, *sys.path, "/somewhere"])
    (task,) = await run(local("processes", 1), ComputeTask(function=lambda: sys.path))
    assert task.return_value == sys.path[1:]


async def test_tasks_do_not_share_what_one_of_them_changes() -> None:
    shared = [0] * 1000

    def append(values: list[int]) -> int:
        values.append(1)
        return len(values)

    tasks = await run(local("processes", 1), *(ComputeTask(function=append, args=(shared,)) for _ in range(200)))
    assert {task.return_value for task in tasks} == {1001}
    assert len(shared) == 1000


SCRIPT = """
import functools

class Counter:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return self.calls

    def call(self):
        return self()

def count(calls):
    calls.append(1)
    return len(calls)

def make():
    calls = []
    return lambda: count(calls)

method, instance, partial, closure = Counter().call, Counter(), functools.partial(count, []), make()
model = None

def load_once():
    global model
    loads = model is None
    model = model or "loaded"
    return loads
"""


@pytest.fixture
def script() -> dict[str, Any]:
    """What a script has defined: all of it travels by value."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(SCRIPT, names)
    return names


@pytest.mark.parametrize("name", ["method", "instance", "partial", "closure"])
async def test_tasks_do_not_share_what_their_function_carries(script: dict[str, Any], name: str) -> None:
    tasks = await run(local("processes", 1), *(ComputeTask(function=script[name]) for _ in range(4)))
    assert [task.return_value for task in tasks] == [1] * 4


async def test_what_a_plain_function_keeps_in_a_global_is_there_for_the_next_task(script: dict[str, Any]) -> None:
    tasks = await run(local("processes", 1), *(ComputeTask(function=script["load_once"]) for _ in range(4)))
    assert sum(task.return_value for task in tasks) == 1


def test_a_worker_keeps_plain_functions_and_classes_and_nothing_that_carries_data(script: dict[str, Any]) -> None:
    functions = {name: value for name, value in script.items() if callable(value)}
    functions |= {"a builtin": len, "a method of a builtin": [].append}
    pickles = {name: worker.dumps(value) for name, value in functions.items()}
    kept = {
        name for name, pickled in pickles.items() if worker._load_function(pickled) is worker._load_function(pickled)
    }
    assert kept == {"a builtin", "Counter", "count", "make", "load_once"}


@pytest.mark.parametrize(("count", "size"), [(1000, 10), (200, 2**20)])
def test_what_a_worker_keeps_is_bounded_in_number_and_in_bytes(count: int, size: int) -> None:
    for number in range(count):
        text = f"{number:{size}}"
        worker._load_function(worker.dumps(eval("lambda: text", {"__name__": "__main__", "text": text})))
    assert 0 < len(worker._kept) <= 256
    assert sum(map(len, worker._kept)) < 2**26 + 2**21


@pytest.mark.parametrize("kind", KINDS)
async def test_ten_thousand_results_are_each_in_their_place(kind: str) -> None:
    tasks = await run(local(kind), *(ComputeTask(function=pow, args=(i, 2)) for i in range(10_000)))
    assert [task.return_value for task in tasks] == [i * i for i in range(10_000)]


def test_a_script_without_a_main_guard_runs_functions_in_processes(tmp_path: Path) -> None:
    script = tmp_path / "plain.py"
    script.write_text(
        textwrap.dedent("""
            import asyncio
            from rhapsody.api import ComputeTask, Session
            from rhapsody.backends import ConcurrentExecutionBackend

            class Point:
                def __init__(self, x): self.x = x

            def double(point): return Point(2 * point.x)

            async def main():
                async with Session(backends=[ConcurrentExecutionBackend(executor="processes")]) as session:
                    task = ComputeTask(function=double, args=(Point(4),))
                    await session.submit_tasks([task])
                    result = (await task).return_value
                    print(result.x, isinstance(result, Point))

            asyncio.run(main())
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("8 True\n", "")


# -- executors of the caller's ---------------------------------------------------------------------------------------


async def test_a_thread_pool_of_the_caller_is_used_and_left_open() -> None:
    with ThreadPoolExecutor(max_workers=3, thread_name_prefix="mine") as executor:
        backend = ConcurrentExecutionBackend(executor=executor)
        tasks = [ComputeTask(function=lambda: threading.current_thread().name) for _ in range(100)]
        await run(Session(backends=[backend]), *tasks)
        assert {task.return_value[:4] for task in tasks} == {"mine"}
        assert executor.submit(int, "7").result() == 7


async def test_a_process_pool_of_the_caller_is_used_and_left_open() -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("forkserver")) as executor:
        tasks = [ComputeTask(function=os.getpid) for _ in range(50)]
        await run(local(executor, None), *tasks)
        assert {task.return_value for task in tasks} <= set(executor._processes)
        assert executor.submit(int, "7").result() == 7
    # The standard library keeps these two for the life of the program.
    from multiprocessing import forkserver, resource_tracker

    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


async def test_any_other_executor_gets_bytes_and_gives_bytes_back() -> None:
    class Inline(Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            box: list[Any] = []
            thread = threading.Thread(target=lambda: box.append(fn(*args, **kwargs)))
            thread.start()
            thread.join()
            future.set_result(box[0])
            return future

    tasks = await run(local(Inline(), 2), *(ComputeTask(function=pow, args=(i, 2)) for i in range(20)))
    assert [task.return_value for task in tasks] == [i * i for i in range(20)]


@pytest.mark.parametrize("options", [{"executor": "thread"}, {"executor": 3}, {"max_workers": 0}, {"max_workers": "2"}])
def test_an_executor_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BackendConfigurationError, match=next(iter(options))):
        ConcurrentExecutionBackend(**options)


# -- executables -----------------------------------------------------------------------------------------------------


async def test_an_executable_s_output_exit_code_and_error_come_back() -> None:
    (good, bad) = await run(
        local(),
        ComputeTask(executable="sh", arguments=["-c", "echo out; echo err >&2"]),
        ComputeTask(executable="sh", arguments=["-c", "echo why >&2; exit 7"]),
    )
    assert (good.stdout, good.stderr, good.exit_code, good.return_value) == ("out\n", "err\n", 0, None)
    assert (bad.state, bad.exit_code) == (TaskState.FAILED, 7)
    with pytest.raises(TaskExecutionError, match=r"exit code 7\nwhy") as caught:
        await bad
    assert (caught.value.uid, caught.value.exit_code, caught.value.stderr) == (bad.uid, 7, "why\n")


async def test_cwd_environment_stdin_and_arguments_reach_the_program(tmp_path: Path) -> None:
    (task,) = await run(
        local(),
        ComputeTask(
            executable=sys.executable,
            arguments=[
                "-c",
                "import os,sys; print(os.getcwd(), os.environ['X'], sys.stdin.read(), sys.argv[1:])",
                1,
                "a b",
            ],
            cwd=tmp_path,
            environment={"X": "y"},
            stdin="input",
        ),
    )
    assert task.stdout == f"{tmp_path} y input ['1', 'a b']\n"


async def test_a_shell_sees_the_command_as_written_and_the_arguments_quoted() -> None:
    (task,) = await run(
        local(), ComputeTask(executable="echo $HOME;", arguments=["printf", "%s", "$HOME ; *"], shell=True)
    )
    assert task.stdout == f"{os.environ['HOME']}\n$HOME ; *"


async def test_capture_to_files_keeps_the_output_and_the_tail_of_the_error(work_dir: Path) -> None:
    (task,) = await run(
        local(), ComputeTask(executable="sh", arguments=["-c", "echo out; echo err >&2; exit 1"], capture_stdio=True)
    )
    assert (task.stdout, task.stderr) == (None, None)
    assert Path(str(task.stdout_path)).read_text() == "out\n"
    assert isinstance(task.exception, TaskExecutionError)
    assert task.exception.stderr == "err\n"
    assert task.stderr_path in task.exception.paths


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"executable": "/no/such/program"}, "No such file or directory: '/no/such/program'"),
        ({"executable": "/etc/passwd"}, "Permission denied"),
        ({"executable": "true", "cwd": "/no/such/folder"}, "/no/such/folder"),
        ({"executable": "true", "arguments": ["a\0b"]}, "null byte"),
    ],
)
async def test_a_program_that_cannot_be_started_says_why(fields: dict[str, Any], complaint: str) -> None:
    (task,) = await run(local(), ComputeTask(**fields))
    assert (task.state, task.exit_code) == (TaskState.FAILED, None)
    with pytest.raises(TaskExecutionError, match=complaint):
        await task


async def test_output_that_is_not_utf8_is_kept_and_is_no_failure() -> None:
    (task,) = await run(local(), ComputeTask(executable="printf", arguments=[r"a\377b"]))
    assert (task.state, task.stdout) == (TaskState.DONE, "a\N{REPLACEMENT CHARACTER}b")


async def test_ten_megabytes_of_output_are_whole_and_a_hundred_are_cut_in_the_middle() -> None:
    ten, hundred = await run(
        local(),
        ComputeTask(executable="head", arguments=["-c", 10 * 2**20, "/dev/zero"]),
        ComputeTask(executable="head", arguments=["-c", 100 * 2**20, "/dev/zero"]),
    )
    assert len(str(ten.stdout)) == 10 * 2**20
    assert hundred.state is TaskState.DONE
    assert "[... 88080384 bytes left out ...]" in str(hundred.stdout)


async def test_a_grandchild_that_holds_the_pipe_does_not_hang_the_task_and_dies_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    (task,) = await run(local(), ComputeTask(executable=f"sleep 300 & echo $! > {pid_file}; echo done", shell=True))
    assert (task.state, task.stdout) == (TaskState.DONE, "done\n")
    await _gone(int(pid_file.read_text()))


async def test_executables_run_as_many_at_once_as_there_are_slots(tmp_path: Path) -> None:
    script = f"touch {tmp_path}/$$; ls {tmp_path} | wc -l; sleep 0.1; rm {tmp_path}/$$"
    tasks = await run(local(max_workers=3), *(ComputeTask(executable=script, shell=True) for _ in range(12)))
    assert max(int(str(task.stdout)) for task in tasks) <= 3


async def test_forty_executables_need_few_file_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(64, used + 40), hard))
    try:
        tasks = await run(local(max_workers=2), *(ComputeTask(executable="true") for _ in range(40)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert {task.state for task in tasks} == {TaskState.DONE}


async def test_executables_run_and_stop_where_the_system_tells_of_no_death(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(*_: object) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", refused)
    pid_file = tmp_path / "pid"
    async with local() as session:
        good = ComputeTask(executable=f"sleep 300 & echo $! > {pid_file}; echo done", shell=True)
        bad = ComputeTask(executable="sh", arguments=["-c", "exit 7"])
        await session.submit_tasks([good, bad])
        await session.wait_tasks([good, bad], timeout=60)
        assert (good.state, good.stdout, bad.exit_code) == (TaskState.DONE, "done\n", 7)
        await _gone(int(pid_file.read_text()))
        long = ComputeTask(executable="sleep", arguments=[600])
        await session.submit_tasks([long])
        while long.state is not TaskState.RUNNING:
            await asyncio.sleep(0.005)
        assert await session.cancel_tasks([long]) == {long.uid: CancelResult.STOPPED}


# -- cancel ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_cancel_says_of_each_task_what_became_of_it(kind: str) -> None:
    release = threading.Event()
    async with local(kind, 1) as session:
        done = ComputeTask(function=int)
        await session.submit_tasks([done])
        await done
        long = ComputeTask(function=release.wait if kind == "threads" else time.sleep, args=(60,))
        waiting = [ComputeTask(function=int) for _ in range(3)]
        await session.submit_tasks([long, *waiting])
        while long.state is not TaskState.RUNNING:
            await asyncio.sleep(0.01)
        results = await session.cancel_tasks([done, long, *waiting])
        assert results[done.uid] is CancelResult.TOO_LATE
        assert [results[task.uid] for task in waiting] == [CancelResult.NEVER_STARTED] * 3
        with pytest.raises(TaskCanceledError, match=waiting[0].uid):
            await waiting[0]
        if kind == "threads":  # nothing can stop a function in a thread: it keeps its real end
            assert results[long.uid] is CancelResult.CANNOT_STOP
            release.set()
            assert (await long).return_value is True
        else:
            assert results[long.uid] is CancelResult.STOPPED
            assert long.state is TaskState.CANCELED
        after = ComputeTask(function=int)
        await session.submit_tasks([after])
        assert (await after).return_value == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_canceled_executable_is_stopped_with_its_whole_group(kind: str, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"trap '' TERM; sh -c \"trap '' TERM; echo $$ >> {pids}; sleep 60\" & echo $$ >> {pids}; wait; sleep 60"
    async with local(kind) as session:
        task = ComputeTask(executable=script, shell=True)
        await session.submit_tasks([task])
        while not pids.exists() or len(pids.read_text().split()) < 2:
            await asyncio.sleep(0.01)
        assert await session.cancel_tasks([task]) == {task.uid: CancelResult.STOPPED}
        assert (task.state, task.exit_code) == (TaskState.CANCELED, -signal.SIGKILL)
    for pid in pids.read_text().split():
        await _gone(int(pid))


async def _gone(pid: int) -> None:
    for _ in range(500):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return  # dead, and waiting for whoever inherited it
        await asyncio.sleep(0.01)
    pytest.fail(f"process {pid} is still there")
