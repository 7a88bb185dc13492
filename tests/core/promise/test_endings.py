"""However a program ends, nothing that it started lives on, and the terminal shows nothing that is not its own.

In most of these scripts everything runs at once: functions in threads and in processes, programs, one of which does
not listen to SIGTERM and one of which leaves its process group, and more tasks that wait.
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
def test_a_normal_close_leaves_nothing_and_writes_nothing(start_script: Any, kind: str) -> None:
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


def test_ctrl_c_ends_all_that_runs_and_gives_the_prompt_back(start_script: Any) -> None:
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
def test_ctrl_c_twice_leaves_nothing_either(start_script: Any, pause: float) -> None:
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
def test_a_program_that_is_killed_takes_everything_with_it(start_script: Any, signum: int) -> None:
    script = start_script(BUSY)
    assert script.line() == "busy"
    assert len(script.descendants()) > 8
    os.kill(script.process.pid, signum)
    assert script.wait() == -signum
    script.leaves_nothing()
    script.quiet()


def test_a_program_that_is_killed_takes_everything_with_it_though_its_forks_live_on(start_script: Any) -> None:
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


def test_os_exit_of_the_program_leaves_nothing(start_script: Any) -> None:
    script = start_script(BUSY.replace('say("busy")', "os._exit(9)"))
    assert script.wait() == 9
    script.leaves_nothing()


def test_an_exception_in_the_block_cancels_all_and_is_the_only_thing_on_the_terminal(start_script: Any) -> None:
    body = BUSY.replace('say("busy")', 'raise ZeroDivisionError("the user\'s own")')
    script = start_script(body)
    assert script.wait() == 1
    assert script.stderr.endswith("\nZeroDivisionError: the user's own\n")
    assert script.stderr.count("Error") == 2  # in the line of the source, and in the last line
    script.leaves_nothing()


def test_sys_exit_in_the_program_keeps_its_exit_code(start_script: Any) -> None:
    script = start_script(BUSY.replace('say("busy")', "sys.exit(7)"))
    assert script.wait() == 7
    script.quiet()
    script.leaves_nothing()


def test_sys_exit_and_ctrl_c_in_a_task_fail_the_task_and_nothing_else(start_script: Any) -> None:
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


def test_asyncio_run_around_an_unclosed_session_warns_and_leaves_nothing(start_script: Any) -> None:
    script = start_script(UNCLOSED + 'asyncio.run(main())\nsay("after")')
    assert script.line() == "after"
    assert script.wait() == 0
    script.quiet("UnclosedSessionWarning", "was never closed")
    script.leaves_nothing()


@pytest.mark.parametrize("close", ["loop.close()", "pass"])
def test_a_program_whose_loop_is_gone_ends_without_a_hang(start_script: Any, close: str) -> None:
    script = start_script(
        f"{UNCLOSED}\nloop = asyncio.new_event_loop()\nsession = loop.run_until_complete(main())\n{close}\nsay('gone')"
    )
    assert script.line() == "gone"
    began = time.monotonic()
    assert script.wait() == 0
    assert time.monotonic() - began < PROMPT
    script.leaves_nothing()
    script.quiet("UnclosedSessionWarning", "was never closed")


def test_a_session_that_was_never_started_ends_without_a_word(start_script: Any) -> None:
    script = start_script("session, tasks = everything()")
    assert script.wait() == 0
    script.quiet()
    script.leaves_nothing()


def test_a_fork_of_the_program_that_ends_does_not_disturb_the_session(start_script: Any) -> None:
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
