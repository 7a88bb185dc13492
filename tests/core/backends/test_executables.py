"""Executables of the local backend."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import CancelResult, ComputeTask, TaskExecutionError, TaskState

from ..local import gone, local, run

pytestmark = pytest.mark.usefixtures("leaves_nothing")


async def test_executable_results_come_back() -> None:
    """An executable's output, exit code and error come back."""
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


async def test_executable_gets_its_inputs(tmp_path: Path) -> None:
    """Folder, environment, stdin and arguments reach the executable."""
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


async def test_shell_quotes_arguments_only() -> None:
    """A shell gets the command as written and the arguments quoted."""
    (task,) = await run(
        local(), ComputeTask(executable="echo $HOME;", arguments=["printf", "%s", "$HOME ; *"], shell=True)
    )
    assert task.stdout == f"{os.environ['HOME']}\n$HOME ; *"


async def test_capture_to_files(work_dir: Path) -> None:
    """Captured files hold the output, and the error quotes the end of stderr."""
    (task,) = await run(
        local(), ComputeTask(executable="sh", arguments=["-c", "echo out; echo err >&2; exit 1"], capture_stdio=True)
    )
    assert (task.stdout, task.stderr) == (None, None)
    assert Path(str(task.stdout_path)).read_text() == "out\n"
    assert isinstance(task.exception, TaskExecutionError)
    assert task.exception.stderr == "err\n"
    assert task.stderr_path in task.exception.paths


@pytest.mark.parametrize(
    ("fields", "code", "complaint"),
    [
        ({"executable": "/no/such/program"}, 127, "No such file or directory: '/no/such/program'"),
        ({"executable": "/etc/passwd"}, 126, "Permission denied"),
        ({"executable": "true", "cwd": "/no/such/folder"}, 127, "/no/such/folder"),
        ({"executable": "true", "arguments": ["a\0b"]}, 126, "null byte"),
    ],
)
async def test_unstartable_executable_says_why(fields: dict[str, Any], code: int, complaint: str) -> None:
    """An executable that cannot be started says why, by the exit code of a shell too."""
    (task,) = await run(local(), ComputeTask(**fields))
    assert (task.state, task.exit_code) == (TaskState.FAILED, code)
    with pytest.raises(TaskExecutionError, match=complaint):
        await task


async def test_non_utf8_output_is_kept() -> None:
    """Output that is not UTF-8 is kept and is no failure."""
    (task,) = await run(local(), ComputeTask(executable="printf", arguments=[r"a\377b"]))
    assert (task.state, task.stdout) == (TaskState.DONE, "a\N{REPLACEMENT CHARACTER}b")


async def test_huge_output_is_cut_in_the_middle() -> None:
    """Ten megabytes of output are whole, and a hundred are cut in the middle."""
    ten, hundred = await run(
        local(),
        ComputeTask(executable="head", arguments=["-c", 10 * 2**20, "/dev/zero"]),
        ComputeTask(executable="head", arguments=["-c", 100 * 2**20, "/dev/zero"]),
    )
    assert len(str(ten.stdout)) == 10 * 2**20
    assert hundred.state is TaskState.DONE
    assert "[... 88080384 bytes left out ...]" in str(hundred.stdout)


async def test_grandchild_cannot_hang_a_task(tmp_path: Path) -> None:
    """A grandchild that holds the pipe does not hang the task, and dies with it."""
    pid_file = tmp_path / "pid"
    (task,) = await run(local(), ComputeTask(executable=f"sleep 300 & echo $! > {pid_file}; echo done", shell=True))
    assert (task.state, task.stdout) == (TaskState.DONE, "done\n")
    await gone(int(pid_file.read_text()))


async def test_executables_fill_the_slots(tmp_path: Path) -> None:
    """As many executables run at once as there are slots."""
    script = f"touch {tmp_path}/$$; ls {tmp_path} | wc -l; sleep 0.1; rm {tmp_path}/$$"
    tasks = await run(local(max_workers=3), *(ComputeTask(executable=script, shell=True) for _ in range(12)))
    assert max(int(str(task.stdout)) for task in tasks) <= 3


async def test_executables_need_few_descriptors() -> None:
    """Forty executables need few file descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(64, used + 40), hard))
    try:
        tasks = await run(local(max_workers=2), *(ComputeTask(executable="true") for _ in range(40)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert {task.state for task in tasks} == {TaskState.DONE}


async def test_executables_without_pidfd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Executables run and stop where the system has no descriptor for the end of a process."""

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
        await gone(int(pid_file.read_text()))
        long = ComputeTask(executable="sleep", arguments=[600])
        await session.submit_tasks([long])
        while long.state is not TaskState.RUNNING:
            await asyncio.sleep(0.005)
        assert await session.cancel_tasks([long]) == {long.uid: CancelResult.STOPPED}
