"""However a program ends, nothing that it started lives on, and the terminal shows nothing that is not its own.

In most of these scripts everything runs at once: functions in threads and in processes, executables, one of which
ignores SIGTERM and one of which leaves its process group, and more tasks that wait.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

PROMPT = 15  # seconds: three times what is promised, for a machine that is loaded with other things
BUSY = """
async def main():
    session, tasks = everything()
    async with session:
        await session.submit_tasks(tasks)
        await running(tasks)
        say("busy")
        await session.wait_tasks(tasks)

asyncio.run(main())
"""
UNCLOSED = """
async def main():
    session, tasks = everything()
    await session.submit_tasks(tasks)
    await running(tasks)
    return session
"""


@pytest.mark.parametrize("kind", ["threads", "processes", "thread pool", "process pool"])
def test_normal_close_leaves_nothing(start_script: Any, kind: str) -> None:
    """A normal close leaves no process or file, and writes nothing."""
    script = start_script(
        """
        async def sleep_and_leave_a_task():
            asyncio.get_running_loop().create_task(asyncio.sleep(600))
            await asyncio.sleep(0.01)

        async def main(executor):
            threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
            backend = ConcurrentExecutionBackend(executor=executor, max_workers=2)
            async with Session(backends=[backend]) as session:
                tasks = [ComputeTask(function=pow, args=(i, 2)) for i in range(1000)]
                tasks += [ComputeTask(executable="sleep 600 & echo hello", shell=True) for _ in range(5)]
                tasks += [ComputeTask(function=sleep_and_leave_a_task) for _ in range(3)]
                await session.submit_tasks(tasks)
                await session.wait_tasks(tasks)
            say(sum(task.state == "DONE" for task in tasks))
            if isinstance(executor, str):
                descriptors -= len(os.listdir("/proc/self/fd"))
                say(threading.active_count() - threads, descriptors, len(asyncio.all_tasks()) - 1)
            else:
                say("0 0 0" if executor.submit(pow, 2, 2).result() == 4 else "the executor was shut down")

        if __name__ == "__main__":
            if sys.argv[1].endswith("pool"):
                with (ThreadPoolExecutor if sys.argv[1] == "thread pool" else ProcessPoolExecutor)(2) as executor:
                    asyncio.run(main(executor))
            else:
                asyncio.run(main(sys.argv[1]))
        """,
        kind,
    )
    assert script.line() == "1008"
    assert script.line() == "0 0 0"
    assert script.wait() == 0
    assert script.stdout == ""
    script.quiet()
    script.leaves_nothing()


def test_ctrl_c_ends_everything(start_script: Any) -> None:
    """Ctrl-C ends all that runs and returns to the prompt at once."""
    script = start_script(BUSY)
    assert script.line() == "busy"
    assert len(script.descendants()) > 8
    began = time.monotonic()
    script.interrupt()
    assert script.wait() == -signal.SIGINT
    assert time.monotonic() - began < PROMPT
    script.quiet("Traceback", "KeyboardInterrupt", "CancelledError")
    assert script.stderr.count("\nKeyboardInterrupt\n") == 1
    script.leaves_nothing()


# Two within the same instant are not among them: asyncio itself may lose its way then (docs/explanation/promise.md).
@pytest.mark.parametrize("pause", [0.05, 0.3, 1.0])
def test_second_ctrl_c_leaves_nothing(start_script: Any, pause: float) -> None:
    """A second Ctrl-C leaves nothing either."""
    script = start_script(BUSY)
    assert script.line() == "busy"
    began = time.monotonic()
    script.interrupt()
    time.sleep(pause)
    script.interrupt()
    assert script.wait() != 0
    assert time.monotonic() - began < PROMPT
    script.leaves_nothing()
    # asyncio itself complains of what it had no time to end; what is ours must not add to that
    assert "Exception ignored" not in script.stderr
    assert "UnclosedSessionWarning" not in script.stderr


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_killed_script_leaves_nothing(start_script: Any, signum: int) -> None:
    """A script that is killed leaves no process."""
    script = start_script(BUSY)
    assert script.line() == "busy"
    assert len(script.descendants()) > 8
    os.kill(script.process.pid, signum)
    assert script.wait() == -signum
    script.leaves_nothing()
    script.quiet()


def test_killed_script_with_live_fork(start_script: Any) -> None:
    """A killed script leaves no process though a fork of it lives on."""
    script = start_script(
        """
        async def main():
            session, tasks = everything()
            async with session:
                await session.submit_tasks(tasks)
                await running(tasks)
                child = os.fork()  # it holds every pipe of its parent open
                if not child:
                    time.sleep(600)
                say(child)
                await session.wait_tasks(tasks)

        asyncio.run(main())
        """
    )
    child = int(script.line())
    script.process.kill()
    script.wait()
    deadline = time.monotonic() + 10
    while len(left := script.descendants()) > 1 or left[0].pid != child:
        assert time.monotonic() < deadline, f"these live on: {[(process.pid, process.cmdline()) for process in left]}"
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)


def test_os_exit_leaves_nothing(start_script: Any) -> None:
    """`os._exit` in the script leaves no process."""
    script = start_script(BUSY.replace('say("busy")', "os._exit(9)"))
    assert script.wait() == 9
    script.leaves_nothing()


def test_exception_in_block_cancels_all(start_script: Any) -> None:
    """An exception in the block cancels every task and is all that the terminal shows."""
    body = BUSY.replace('say("busy")', 'raise ZeroDivisionError("the user\'s own")')
    script = start_script(body)
    assert script.wait() == 1
    assert script.stderr.endswith("\nZeroDivisionError: the user's own\n")
    assert script.stderr.count("Error") == 2  # in the line of the source, and in the last line
    script.leaves_nothing()


def test_sys_exit_keeps_its_code(start_script: Any) -> None:
    """`sys.exit` in the script keeps its exit code."""
    script = start_script(BUSY.replace('say("busy")', "sys.exit(7)"))
    assert script.wait() == 7
    script.quiet()
    script.leaves_nothing()


def test_exits_inside_a_task_fail_it(start_script: Any) -> None:
    """SystemExit and KeyboardInterrupt in a task fail that task and nothing else."""
    script = start_script(
        """
        async def leave():
            sys.exit(3)

        def interrupt():
            raise KeyboardInterrupt

        async def main():
            for kind in ("threads", "processes"):
                async with Session(backends=[ConcurrentExecutionBackend(executor=kind, max_workers=2)]) as session:
                    bad = [ComputeTask(function=sys.exit, args=(3,))]
                    bad += [ComputeTask(function=function) for function in (leave, interrupt)]
                    good = [ComputeTask(function=os.getpid) for _ in range(10)]
                    await session.submit_tasks(bad + good)
                    await session.wait_tasks()
                say(*(task.exception.exit_code for task in bad), sum(task.state == "DONE" for task in good))

        asyncio.run(main())
        """
    )
    assert script.line() == "3 3 None 10"
    assert script.line() == "3 3 None 10"
    assert script.wait() == 0
    script.quiet()
    script.leaves_nothing()


def test_unclosed_session_warns(start_script: Any) -> None:
    """asyncio.run around an unclosed session warns and leaves nothing."""
    script = start_script(UNCLOSED + 'asyncio.run(main())\nsay("after")')
    assert script.line() == "after"
    assert script.wait() == 0
    script.quiet("UnclosedSessionWarning", "was never closed")
    script.leaves_nothing()


@pytest.mark.parametrize("close", ["loop.close()", "pass"])
def test_dead_loop_does_not_hang(start_script: Any, close: str) -> None:
    """A script whose loop is gone ends without a hang."""
    script = start_script(
        f"{UNCLOSED}\nloop = asyncio.new_event_loop()\nsession = loop.run_until_complete(main())\n{close}\nsay('gone')"
    )
    assert script.line() == "gone"
    began = time.monotonic()
    assert script.wait() == 0
    assert time.monotonic() - began < PROMPT
    script.leaves_nothing()
    script.quiet("UnclosedSessionWarning", "was never closed")


def test_unstarted_session_is_silent(start_script: Any) -> None:
    """A session that was never started ends silently."""
    script = start_script("session, tasks = everything()")
    assert script.wait() == 0
    script.quiet()
    script.leaves_nothing()


def test_fork_leaves_session_alone(start_script: Any) -> None:
    """A fork of the script that ends does not disturb the session."""
    script = start_script(
        """
        import atexit

        async def main():
            async with Session(backends=[ConcurrentExecutionBackend(executor="processes", max_workers=2)]) as session:
                first = ComputeTask(function=os.getpid)
                await session.submit_tasks([first])
                await first
                if not os.fork():
                    atexit._run_exitfuncs()  # as at the end of any program
                    os._exit(0)
                os.wait()
                again = [ComputeTask(function=os.getpid) for _ in range(100)]
                await session.submit_tasks(again)
                await session.wait_tasks(again)
                say(len({task.return_value for task in [first, *again]}) <= 2)

        asyncio.run(main())
        """
    )
    assert script.line() == "True"
    assert script.wait() == 0
    script.leaves_nothing()
