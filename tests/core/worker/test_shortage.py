"""What a machine lacks for a moment is not a task's end."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest
from rhapsody.api import ComputeTask, Session, TaskState
from rhapsody.worker.shortage import Starts

HANG = 60.0

SCRIPT = """
import asyncio, os, resource, sys
from collections import Counter
from rhapsody.api import ComputeTask, Session
from rhapsody.backends import get_backend

def setting():
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

async def run(tasks, **options):
    async with Session(backends=[get_backend("concurrent", **options)]) as session:
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)
    return dict(Counter(task.state.name for task in tasks))

async def main():
"""


def run_script(prefix: list[str], body: str) -> tuple[str, str]:
    """Run a script by a command that limits it. Returns its output and its errors."""
    script = SCRIPT + textwrap.indent(textwrap.dedent(body), "    ") + "\nasyncio.run(main())"
    command = [*prefix, sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def limited(soft: int, hard: int, body: str) -> tuple[str, str]:
    """Run a script with limits on its open files. Returns its output and its errors."""
    return run_script(["sh", "-c", f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"', "sh"], body)


def with_processes(count: int, body: str) -> tuple[str, str]:
    """Run a script whose user may have this many more processes and threads. Returns its output and its errors.

    The system exempts root: there the script has the user number of somebody who runs nothing, and root's files.
    """
    if shutil.which("setpriv") is None or shutil.which("prlimit") is None:
        pytest.skip("setpriv and prlimit, of util-linux, are not here")
    user = os.getuid()
    if user == 0:
        other = ["setpriv", f"--ruid={10**6 + os.getpid()}", "--bounding-set=-sys_resource,-sys_admin"]
        return run_script([*other, "prlimit", f"--nproc={count}"], body)
    mine = [process for process in psutil.process_iter(["uids", "num_threads"]) if process.info["uids"].real == user]
    taken = sum(process.info["num_threads"] or 1 for process in mine)
    return run_script(["prlimit", f"--nproc={taken + count}"], body)


def test_executables_wait_for_descriptors() -> None:
    """With 64 open files, 200 executables on 50 threads all succeed, and one warning names limit and cure."""
    out, err = limited(
        64,
        64,
        "print(await run([ComputeTask(executable='sleep', arguments=['0.05']) for _ in range(200)], max_workers=50))",
    )
    assert out == "{'DONE': 200}\n"
    assert err.count("RuntimeWarning") == 1
    assert "may have 64 open files: raise that (`ulimit -n`, to 64) or lower max_workers" in err


def test_executables_wait_for_the_machine() -> None:
    """Where the whole machine has no open file left, executables wait, and one warning names limit and cure.

    The lack is simulated: a real one would hit whatever else runs here.
    """
    out, err = run_script(
        [],
        """
        import errno, time
        pipe = os.pipe
        async with Session(backends=[get_backend("concurrent", max_workers=20)]) as session:
            await session.submit_tasks([first := ComputeTask(executable="sleep", arguments=["0.6"])])
            while first.state.name != "RUNNING":
                await asyncio.sleep(0.01)
            until = time.monotonic() + 0.2
            def lacking():
                if time.monotonic() < until:
                    raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
                return pipe()
            os.pipe = lacking
            await session.submit_tasks(tasks := [ComputeTask(executable="true") for _ in range(20)])
            await session.wait_tasks()
        print(Counter(task.state.name for task in tasks)["DONE"])
        """,
    )
    assert out == "20\n"
    assert err.count("RuntimeWarning") == 1
    assert "the machine has no open file left: raise fs.file-max, or lower max_workers" in err


def test_pool_works_with_the_workers_it_gets() -> None:
    """With 64 open files, a pool of 50 processes runs all functions on those that could be started."""
    out, err = limited(
        64,
        64,
        "print(await run([ComputeTask(function=pow, args=(2, 3)) for _ in range(200)], executor='processes', "
        "max_workers=50))",
    )
    assert out == "{'DONE': 200}\n"
    assert err.count("RuntimeWarning") == 1


@pytest.mark.serial  # the limit counts all processes of the user
@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's")
def test_executables_wait_for_processes() -> None:
    """A user who may have 30 processes runs 100 executables on 20 threads, and one warning names limit and cure."""
    out, err = with_processes(
        30,
        "print(await run([ComputeTask(executable='sleep', arguments=['0.3']) for _ in range(100)], max_workers=20))",
    )
    assert out == "{'DONE': 100}\n"
    assert err.count("RuntimeWarning") == 1
    assert "no more processes may start: raise the limit (`ulimit -u`, or the container's) or lower max_workers" in err


def test_soft_limit_on_files_is_raised() -> None:
    """A backend raises the soft limit on open files to what its slots take, up to the hard one."""
    out, err = limited(64, 1100, "await run([], max_workers=50); print(setting())")
    assert out == "1100\n"
    out, err = limited(64, 4096, "await run([], max_workers=50); print(setting())")
    assert 1100 < int(out) < 4096
    assert err == ""


def test_lack_that_nothing_frees_fails_the_task() -> None:
    """Where no executable runs that could free descriptors, the task fails and says what is lacking."""
    out, _ = limited(
        64,
        64,
        """
        task = ComputeTask(executable="true")
        async with Session(backends=["concurrent"]) as session:
            await session.submit_tasks([ComputeTask(executable="true")])  # starts the guard
            await session.wait_tasks()
            held = [os.dup(0) for _ in range(60 - len(os.listdir("/dev/fd")))]
            await session.submit_tasks([task])
            await session.wait_tasks([task])
            for number in held:
                os.close(number)
        print(task.state.name, task.exception)
        """,
    )
    assert out.startswith("FAILED ")
    assert "Too many open files" in out


async def test_file_open_for_writing_is_waited_for(tmp_path: Path) -> None:
    """An executable whose file is still being written starts once it is closed."""
    path = tmp_path / "tool"
    path.write_bytes(Path("/bin/true").read_bytes())
    path.chmod(0o755)
    with path.open("ab") as writer:
        threading.Timer(0.3, writer.close).start()
        async with Session(backends=["concurrent"]) as session:
            task = ComputeTask(executable=str(path))
            await session.submit_tasks([task])
            await session.wait_tasks([task])
    assert task.state is TaskState.DONE


def test_start_waits_for_the_end_of_another() -> None:
    """A start that the system refuses for want of processes is made once another executable has ended."""
    starts = Starts()
    assert starts.start(lambda: "first", lambda: False) == "first"
    free = threading.Event()

    def begin() -> str:
        if not free.is_set():
            raise OSError(errno.EAGAIN, "no more processes")
        return "second"

    def end() -> None:
        free.set()
        starts.over()

    threading.Timer(0.1, end).start()
    assert starts.start(begin, lambda: False) == "second"


def test_canceled_start_does_not_wait_on() -> None:
    """A start that waits for room is given up when its task is canceled."""
    starts = Starts()
    starts.start(lambda: "first", lambda: False)
    until = time.monotonic() + 0.2

    def begin() -> str:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    assert starts.start(begin, lambda: time.monotonic() > until) is None
