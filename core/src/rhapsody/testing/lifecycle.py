"""The part of the suite about the life of a backend: start, loss of workers, restart, shutdown, what is left."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs

from rhapsody.model.kinds import EXECUTABLE
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.scheduling.deadlines import Overdue
from rhapsody.testing import tasks
from rhapsody.testing._base import SuitePart, conforms
from rhapsody.testing.assertions import check, must_be
from rhapsody.testing.ledger import ConformanceError
from rhapsody.testing.life import Life
from rhapsody.testing.rig import Rig, call_shutdown
from rhapsody.testing.watch import Leftovers, Quiet, empty_folders, processes, started_since, threads

__tracebackhide__ = True  # frames of the suite

_SETTLE = 10.0  # seconds that the operating system may take to bury what was shut down


class StartTests(SuitePart):
    """What comes first: the backend is what a backend must be, and it starts."""

    @conforms("starts and shuts down")
    async def test_making_a_backend_starts_nothing(self, rig: Rig) -> None:
        """`__init__` reads its arguments; the engine starts in `rhapsody_init`."""
        before = threads(), await asyncio.to_thread(processes)
        backend = rig.new_backend()
        new = [name for number, name in threads().items() if number not in before[0]]
        new += (await asyncio.to_thread(started_since, before[1])).values()
        check(not new, f"making {type(backend).__name__} started {', '.join(new)}; do that in rhapsody_init")
        check(backend is not rig.new_backend(), "the fixture new_backend gave the same backend twice")

    @conforms("starts and shuts down")
    async def test_backend_starts_with_a_capacity(self, rig: Rig) -> None:
        """When `rhapsody_init` returns, the engine is ready and its slots are known."""
        life = await rig.shared()
        check(
            life.spy.capacity_at_init,
            "rhapsody_init returned before context.set_capacity was called; wait in it until the engine is ready, and "
            "say its capacity: otherwise tasks are submitted to an engine that is not there, one at a time",
        )
        task = await rig.one(**_quick(rig))
        must_be(task, TaskState.DONE, "the first task after the start")


class LifecycleTests(SuitePart):
    """What holds when sessions end and begin again."""

    @conforms("two at once", restarts=True)
    async def test_left_session_harms_no_other(self, rig: Rig) -> None:
        """Of two backends side by side, one is left while it works; the other works on."""
        staying = await rig.shared()
        leaving = await rig.start()
        check(leaving.start_error is None, f"a second backend beside the first did not start: {leaving.start_error}")
        with rig.gate() as stay_gate, rig.gate() as leave_gate:
            kept = [stay_gate.task("k", rig.capabilities)]  # one only: both may stand on one engine of two slots
            left = [leave_gate.task(f"l{number}", rig.capabilities) for number in range(leaving.slots + 6)]
            if rig.capabilities.executables:
                left.append(leave_gate.executable("executable"))
            await rig.submit(kept, staying)
            await rig.until(stay_gate.began, "the first of two backends does not begin a task")
            await rig.submit(left, leaving)
            await rig.until(leave_gate.began, "the second of two backends does not begin a task beside the first")
            await rig.end(leaving, wait=False)
            check(
                leaving.close_error is None,
                f"closing a session in the middle of its work raised {type(leaving.close_error).__name__}: "
                f"{leaving.close_error}",
            )
            unended = [task for task in left if not task.is_final]
            check(not unended, f"{len(unended)} tasks have not ended though their session is closed")
            done = [task for task in left if task.state is TaskState.DONE]
            check(not done, f"{len(done)} tasks are DONE that wait at a gate which was never opened")
            check(
                not [task for task in kept if task.is_final],
                "tasks of one session ended when another session was closed; a backend must share nothing with another",
            )
            stay_gate.open()
            await rig.ended(kept, staying)
        for task in kept:
            must_be(task, TaskState.DONE, "a task of the session that stays, while another is closed,")

    @conforms("starts and shuts down", restarts=True)
    async def test_interrupted_start_leaves_nothing(self, rig: Rig) -> None:
        """A start that the user gives up ends the engine that was coming up."""
        life = rig.make()
        before = await asyncio.to_thread(processes)
        start = asyncio.ensure_future(life.session.start())
        await asyncio.sleep(0.02)
        start.cancel()
        await asyncio.wait([start])
        life.is_open = True
        await rig.end(life, wait=False)
        check(life.close_error is None, f"closing after an interrupted start raised {life.close_error!r}")
        await rig.until(
            lambda: not started_since(before),
            lambda: (
                f"a start was interrupted, and these processes are left: {_listed(started_since(before))}; "
                f"rhapsody_shutdown is called after a failed rhapsody_init too, and must end what that had started"
            ),
        )

    @conforms("starts and shuts down", restarts=True)
    async def test_a_backend_can_be_started_again(self, rig: Rig) -> None:
        """The same object serves another session after its first one is closed."""
        seen = await _lives(rig)
        check(
            seen.second.start_error is None,
            f"the backend was shut down and did not start a second time: {seen.second.start_error}; rhapsody_init must "
            f"begin anew, and keep nothing of the first time",
        )
        for task in seen.results:
            must_be(task, TaskState.DONE, "a task of the second session of a backend")

    @conforms("starts and shuts down", restarts=True)
    async def test_shutdown_raises_nothing(self, rig: Rig) -> None:
        """Closing the two sessions raises no error."""
        seen = await _lives(rig)
        for life in (seen.first, seen.second):
            error = life.close_error
            if error is not None and not isinstance(error.__cause__, Overdue):
                raise ConformanceError(f"closing a session raised {type(error).__name__}: {error}") from error

    @conforms("starts and shuts down", restarts=True)
    async def test_shutdown_ends_within_its_deadline(self, rig: Rig) -> None:
        """`deadlines.shutdown` bounds it, whatever the engine does."""
        seen = await _lives(rig)
        for life in (seen.first, seen.second):
            error = life.close_error
            check(
                error is None or not isinstance(error.__cause__, Overdue),
                f"{error}; bound every wait in rhapsody_shutdown, and end by force what does not end by itself "
                f"(deadlines.shutdown is {life.backend.deadlines.shutdown:g} s, a class attribute)",
            )
            limit = self.shutdown_seconds + 2 * life.start_seconds
            check(
                life.close_seconds < limit,
                f"closing an idle session took {life.close_seconds:.1f} s, and starting it {life.start_seconds:.1f} s; "
                f"what is idle is shut down at once: do not wait in rhapsody_shutdown for what no longer comes (at "
                f"most {limit:.1f} s; the class attribute shutdown_seconds is for engines that need longer)",
            )

    @conforms("starts and shuts down", restarts=True)
    async def test_shutdown_may_be_repeated(self, rig: Rig) -> None:
        """It finds nothing to do."""
        seen = await _lives(rig)
        for backend, when in ((seen.second.backend, "a second time"), (rig.new_backend(), "before any rhapsody_init")):
            try:
                await call_shutdown(backend, backend.deadlines.shutdown)
            except Exception as error:
                raise ConformanceError(
                    f"rhapsody_shutdown, called {when}, raised {type(error).__name__}: {error}; it must find nothing "
                    f"to do"
                ) from error

    @conforms("leaves nothing behind", restarts=True)
    async def test_no_process_is_left(self, rig: Rig) -> None:
        """Neither a child, nor what a child started and left."""
        seen = await _lives(rig)
        left = seen.after_first.processes | seen.growth.processes
        check(
            not left,
            f"after shutdown {len(left)} processes are left: {_listed(left)}; context.guard ends what it marks",
        )

    @conforms("leaves nothing behind", restarts=True)
    async def test_no_thread_is_left(self, rig: Rig) -> None:
        """A second life of the backend leaves no more threads than the first."""
        left = (await _lives(rig)).growth.threads
        check(not left, f"each start and shutdown leaves {len(left)} threads behind: {', '.join(left.values())}")

    @conforms("leaves nothing behind", restarts=True)
    async def test_no_file_descriptor_is_left(self, rig: Rig) -> None:
        """A second life of the backend leaves no more open files and sockets than the first."""
        left = (await _lives(rig)).growth.descriptors
        check(not left, f"each start and shutdown leaves {len(left)} file descriptors open: {_listed(left)}")

    @conforms("leaves nothing behind", restarts=True)
    async def test_no_file_is_left_outside(self, rig: Rig) -> None:
        """Nothing in the current folder, nothing in the temporary one."""
        files = (await _lives(rig)).files
        check(
            not files,
            f"after shutdown these files are left in the current and the temporary folder: {', '.join(files[:10])}; "
            f"what must stay belongs into context.sandbox",
        )

    @conforms("leaves nothing behind", restarts=True)
    async def test_nothing_is_left_on_the_loop(self, rig: Rig) -> None:
        """No asyncio task runs on, and no exception was lost in one."""
        seen = await _lives(rig)
        check(not seen.tasks, f"after shutdown these asyncio tasks still run: {', '.join(seen.tasks)}")
        check(not rig.loop_errors, f"the loop reports exceptions that nobody saw: {'; '.join(rig.loop_errors[:5])}")

    @conforms("prints nothing", restarts=True)
    async def test_nothing_is_printed(self, rig: Rig) -> None:
        """Standard output and error are the user's; a backend speaks through context.log."""
        text = (await _lives(rig)).quiet.text
        check(not text, f"over one session this was written to the terminal:\n{text[:2000]}")

    @conforms("never blocks the loop", restarts=True)
    async def test_no_hook_blocks_the_loop(self, rig: Rig) -> None:
        """In all that was tested so far, no hook kept the loop for 0.8 seconds, nor for 0.3 seconds again and again."""
        await _lives(rig)
        blocks = rig.watch.blocks
        check(
            not blocks,
            f"{len(blocks)} times the event loop stood still for 0.8 seconds, or for 0.3 at the same line again; await "
            f"what takes time, or do it in a thread (context.in_thread). It stood here:\n{blocks[0] if blocks else ''}",
        )

    @conforms("exactly one end", restarts=True)
    async def test_last_events_keep_the_contract(self, rig: Rig) -> None:
        """Nothing wrong was reported while sessions were left, restarted and closed."""
        await _lives(rig)
        faults = rig.faults()
        check(not faults, f"core had to drop reports of the backend:\n{faults}")


@attrs.define
class Evidence:
    """What was seen over two lives of one backend, of which the first is the shared one.

    Attributes:
        first, second: the lives.
        after_first: what the first left.
        results: tasks of the second.
        growth: what the second left besides.
        files: left in the current and the temporary folder.
        tasks: of asyncio, left on the loop.
        quiet: what was printed over the second.
    """

    first: Life
    after_first: Leftovers
    second: Life
    results: list[ComputeTask]
    growth: Leftovers
    files: list[str]
    tasks: list[str]
    quiet: Quiet


async def _lives(rig: Rig) -> Evidence:
    """Close the shared session, live once more with the same backend, and keep what was seen."""
    if isinstance(rig.evidence, Evidence):
        return rig.evidence
    first = await rig.shared()
    await rig.one(**_quick(rig))
    await rig.end_shared(wait=True)
    assert first.before is not None
    after_first = await first.before.left(min(_SETTLE, rig.patience))
    between = await asyncio.to_thread(Leftovers.now)
    running = asyncio.all_tasks()
    quiet = Quiet()
    with empty_folders() as files, quiet.listen():
        second = await rig.start(first.backend)
        results = []
        if second.start_error is None:
            results = [ComputeTask(**fields) for fields in _some_of_each(rig)]
            try:
                await rig.finish([task for task in results if task.kind is not EXECUTABLE], second)
                for task in results:
                    if task.kind is EXECUTABLE:  # one by one: what a hook does for each of them adds up
                        await rig.finish([task], second)
            finally:
                await rig.end(second, wait=all(task.is_final for task in results))
        left = [task.get_name() for task in asyncio.all_tasks() - running]
        for _ in range(100):
            if not files():
                break
            await asyncio.sleep(0.02)
        left_files = files()
    growth = await between.left(min(_SETTLE, rig.patience))
    evidence = Evidence(first, after_first, second, results, growth, left_files, left, quiet)
    rig.evidence = evidence
    return evidence


def _quick(rig: Rig) -> dict[str, Any]:
    if rig.capabilities.functions:
        return {"function": tasks.same, "args": (1,)}
    return {"executable": "/bin/sh", "arguments": ["-c", "true"]}


def _some_of_each(rig: Rig) -> list[dict[str, Any]]:
    wanted: list[dict[str, Any]] = [_quick(rig) for _ in range(20)]
    if rig.capabilities.functions:
        wanted += [{"function": tasks.same_later, "args": (1,)}]
    if rig.capabilities.executables:
        wanted += [{"executable": "/bin/sh", "arguments": ["-c", "echo out; echo err >&2"]} for _ in range(4)]
        leaves = "exec >/dev/null 2>&1 </dev/null; sleep 300 & setsid sleep 300 & sleep 0.2"  # one leaves the group
        wanted += [{"executable": "/bin/sh", "arguments": ["-c", leaves]}]
    return wanted


def _listed(found: dict[int, str]) -> str:
    return "; ".join(f"{number}: {text[:160]}" for number, text in list(found.items())[:10])
