"""The part of the suite about canceling tasks, in every state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from rhapsody.errors import TaskCanceledError
from rhapsody.model.outcome import CancelResult
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.testing import tasks
from rhapsody.testing._base import SuitePart, conforms
from rhapsody.testing.assertions import check, must_be
from rhapsody.testing.gate import Gate
from rhapsody.testing.life import Life
from rhapsody.testing.rig import Rig
from rhapsody.testing.watch import is_alive

__tracebackhide__ = True  # frames of the suite

_KEPT = (CancelResult.NEVER_STARTED, CancelResult.STOPPED)


class CancelTests(SuitePart):
    """What holds for every backend when its tasks are canceled."""

    @conforms("cancels waiting tasks")
    async def test_cancel_answer_is_true(self, rig: Rig) -> None:
        """NEVER_STARTED means that it never runs; CANNOT_STOP that it keeps its real end."""
        life = await rig.shared()
        with rig.gate() as gate:
            blockers = [gate.task(f"b{number}", rig.capabilities) for number in range(life.slots)]
            await rig.submit(blockers, life)
            await rig.until(gate.began, "no worker began any of the tasks")
            victims = [_signing(rig, gate, f"v{number}") for number in range(6)]
            await rig.submit(victims, life)
            answer = await rig.cancel(victims, life)
            gate.open()
            await rig.ended([*blockers, *victims], life)
            await asyncio.sleep(0.1)  # for runs that should not be
            for number, task in enumerate(victims):
                ran = (gate.folder / f"v{number}").exists()
                result = answer[task.uid]
                if result is CancelResult.NEVER_STARTED:
                    must_be(task, TaskState.CANCELED, "a task of which cancel says NEVER_STARTED")
                    check(
                        not ran, "cancel said NEVER_STARTED of a task that ran all the same; take it out of the queue"
                    )
                elif result is CancelResult.CANNOT_STOP:
                    must_be(task, TaskState.DONE, "a task of which cancel says CANNOT_STOP")
                    check(ran, "cancel said CANNOT_STOP of a task that is DONE and never ran")
                else:
                    check(result in CancelResult, f"cancel said {result!r} of a task that waited")
        for task in blockers:
            must_be(task, TaskState.DONE, "a task that ran while others were canceled")

    @conforms("cancels waiting tasks")
    async def test_mass_cancel_spares_running_tasks(self, rig: Rig) -> None:
        """What waits is gone at once, what runs ends as it would have."""
        life = await rig.shared()
        with rig.gate() as gate:
            runs = [gate.task(f"r{number}", rig.capabilities) for number in range(life.slots)]
            await rig.submit(runs, life)
            await rig.until(gate.began, "no worker began any of the tasks")
            waits = [_signing(rig, gate, "book") for _ in range(min(2000, self.many))]
            await rig.submit(waits, life)
            answer = await rig.cancel(waits, life)
            gate.open()
            await rig.ended([*runs, *waits], life)
            ran = len((gate.folder / "book").read_text().splitlines()) if (gate.folder / "book").exists() else 0
        done = sum(task.state is TaskState.DONE for task in waits)
        check(ran == done, f"{ran} of {len(waits)} canceled tasks ran, and {done} are DONE")
        stopped = sum(result in _KEPT for result in answer.values())
        check(
            stopped == len(waits) - done,
            f"cancel said of {stopped} of {len(waits)} waiting tasks that they will not run, and {done} ran",
        )
        for task in runs:
            must_be(task, TaskState.DONE, "a task that ran while the waiting ones were canceled")

    @conforms("cancels waiting tasks")
    async def test_abandoned_cancel_loses_no_task(self, rig: Rig) -> None:
        """At whatever moment that is, each task ends: canceled, or as it would have."""
        life = await rig.shared()
        for pause in (0.0, 0.05):
            with rig.gate() as gate:
                runs = [gate.task(f"r{number}", rig.capabilities) for number in range(life.slots)]
                await rig.submit(runs, life)
                await rig.until(gate.began, "no worker began any of the tasks")
                waits = [_signing(rig, gate, f"w{number}") for number in range(6)]
                await rig.submit(waits, life)
                cancel = asyncio.create_task(rig.cancel([*waits, *runs], life))
                await asyncio.sleep(pause)
                cancel.cancel()
                await asyncio.wait([cancel])
                gate.open()
                await rig.ended([*runs, *waits], life)
                for number, task in enumerate(waits):
                    book = gate.folder / f"w{number}"
                    ran = len(book.read_text().splitlines()) if book.exists() else 0
                    check(
                        task.state is TaskState.CANCELED or (task.state is TaskState.DONE and ran == 1),
                        f"a task that waited when a cancel was given up ended {task.state} ({task.exception!r}), and "
                        f"ran {ran} times",
                    )

    @conforms("stops a running function", needs="functions cancel_functions")
    async def test_running_function_is_stopped(self, rig: Rig) -> None:
        """It is CANCELED, it does run no more, and its slot is free again."""
        life = await rig.shared()
        with rig.gate() as gate:
            task = ComputeTask(function=tasks.beat, args=(str(gate.folder), "f"))
            await rig.submit([task], life)
            heart = gate.folder / "f.beat"
            await rig.until(heart.exists, "no worker began the function")
            answer = (await rig.cancel([task], life))[task.uid]
            check(
                answer is CancelResult.STOPPED and task.state is TaskState.CANCELED,
                f"the backend declares cancel_functions; cancel said {answer} of a running function, which is "
                f"{task.state}. Stop it in rhapsody_cancel, report Outcome(CANCELED) and return STOPPED",
            )
            check(isinstance(task.exception, TaskCanceledError), f"its exception is {task.exception!r}")
            await stands_still(rig, heart, "a function that cancel said was STOPPED still runs")
        for number in range(2 * life.slots):
            after = await rig.one(function=tasks.same, args=(number,))
            must_be(after, TaskState.DONE, "a task after another was stopped")

    @conforms("stops a running function", needs="functions", lacks="cancel_functions")
    async def test_unstoppable_function_goes_on(self, rig: Rig) -> None:
        """Cancel says CANNOT_STOP, the task is DONE with its result."""
        life = await rig.shared()
        with rig.gate() as gate:
            task = gate.function("f")
            await _keeps_its_end(rig, life, gate, task, "function")
        must_be(task, TaskState.DONE, "a function of which cancel said CANNOT_STOP")
        check(task.return_value == "f", f"it returned 'f', and return_value is {task.return_value!r}")

    @conforms("stops a running executable", needs="executables cancel_executables")
    async def test_running_executable_is_stopped(self, rig: Rig) -> None:
        """The whole process group is gone, also one that ignores SIGTERM."""
        life = await rig.shared()
        with rig.gate() as gate:
            plain = gate.executable("plain", before='sleep 300 & echo $! > "$1/child";')
            deaf = gate.executable("deaf", before="trap '' TERM;")
            batch = [plain, deaf] if life.slots > 1 else [plain]
            await rig.submit(batch, life)
            await rig.until(lambda: len(gate.began()) == len(batch), "the executables did not begin")
            pids = [gate.pid(name) for name in sorted(gate.began())] + [int((gate.folder / "child").read_text())]
            answer = await rig.cancel(batch, life)
            for task in batch:
                check(
                    answer[task.uid] is CancelResult.STOPPED and task.state is TaskState.CANCELED,
                    f"the backend declares cancel_executables; cancel said {answer[task.uid]} of a running executable, "
                    f"which is {task.state} ({task.exception!r}). Stop it in rhapsody_cancel (rhapsody.worker.stop "
                    f"does in the worker's process), report Outcome(CANCELED) and return STOPPED",
                )
            await rig.until(
                lambda: not any(is_alive(pid) for pid in pids),
                lambda: (
                    f"executables that cancel said were STOPPED still run, or their children do: processes "
                    f"{[pid for pid in pids if is_alive(pid)]}; signal the process group, and "
                    f"SIGKILL what ignores SIGTERM"
                ),
            )
        after = await rig.one(executable="/bin/sh", arguments=["-c", "true"])
        must_be(after, TaskState.DONE, "an executable after another was stopped")

    @conforms("stops a running executable", needs="executables cancel_executables")
    async def test_executable_of_a_batch_is_stopped(self, rig: Rig) -> None:
        """Of executables that share a batch, the one that runs is stopped, and those behind it run."""
        script = 'echo ran >> "$1/$2"; while [ -e "$1/shut" ]; do sleep 0.05; done'

        def executable(folder: Path, number: int) -> ComputeTask:
            return ComputeTask(executable="/bin/sh", arguments=["-c", script, "sh", str(folder), number])

        await _stops_one_of_a_batch(rig, executable, "executable")

    @conforms("stops a running function", needs="functions cancel_functions")
    async def test_function_of_a_batch_is_stopped(self, rig: Rig) -> None:
        """Of functions that share a batch, the one that runs is stopped, and those behind it run."""

        def function(folder: Path, number: int) -> ComputeTask:
            return ComputeTask(function=tasks.sign_at, args=(str(folder), str(number)))

        await _stops_one_of_a_batch(rig, function, "function")

    @conforms("stops a running executable", needs="executables", lacks="cancel_executables")
    async def test_unstoppable_executable_goes_on(self, rig: Rig) -> None:
        """Cancel says CANNOT_STOP, the task is DONE."""
        life = await rig.shared()
        with rig.gate() as gate:
            task = gate.executable("e")
            await _keeps_its_end(rig, life, gate, task, "executable")
        must_be(task, TaskState.DONE, "an executable of which cancel said CANNOT_STOP")

    @conforms("cancels in every state")
    async def test_ended_task_keeps_its_end(self, rig: Rig) -> None:
        """Cancel says TOO_LATE."""
        life = await rig.shared()
        task = _quick(rig, 0)
        await rig.finish([task], life)
        answer = (await rig.cancel([task], life))[task.uid]
        check(answer is CancelResult.TOO_LATE, f"cancel said {answer} of a task that had ended")
        must_be(task, TaskState.DONE, "a task that is canceled after its end")

    @conforms("cancels in every state")
    async def test_cancel_ends_each_task_once(self, rig: Rig) -> None:
        """Whatever moment cancel meets, what it says of a task is what became of it."""
        life = await rig.shared()
        if rig.capabilities.functions:
            batch = [ComputeTask(function=tasks.nap, args=(number,)) for number in range(min(200, self.many))]
        else:
            batch = [_quick(rig, number) for number in range(40)]
        count = len(batch)
        await rig.submit(batch, life)
        answer: dict[str, CancelResult] = {}
        for start in range(0, count, 20):
            answer |= await rig.cancel(batch[start : start + 10], life)
        await rig.ended(batch, life)
        for number, task in enumerate(batch):
            result = answer.get(task.uid)
            wanted = TaskState.CANCELED if result in _KEPT else TaskState.DONE
            check(
                task.state is wanted,
                f"task number {number} of {count} ended {task.state}, and cancel "
                f"{'was not asked' if result is None else f'answered {result}'}; cancel what is asked for, and nothing "
                f"else",
            )


def _quick(rig: Rig, number: int) -> ComputeTask:
    if rig.capabilities.functions:
        return ComputeTask(function=tasks.same, args=(number,))
    return ComputeTask(executable="/bin/sh", arguments=["-c", "true"])


def _signing(rig: Rig, gate: Gate, name: str) -> ComputeTask:
    """Return a task that leaves a line in a file if it runs."""
    if rig.capabilities.functions:
        return ComputeTask(function=tasks.sign, args=(str(gate.folder), name))
    return ComputeTask(executable="/bin/sh", arguments=["-c", 'echo ran >> "$1"', "sh", str(gate.folder / name)])


async def _keeps_its_end(rig: Rig, life: Life, gate: Gate, task: ComputeTask, kind: str) -> None:
    """Ask a running task of a kind that cannot be stopped to stop, and let it end."""
    await rig.submit([task], life)
    await rig.until(gate.began, f"no worker began the {kind}")
    answer = (await rig.cancel([task], life))[task.uid]
    check(
        answer is CancelResult.CANNOT_STOP,
        f"the backend does not declare cancel_{kind}s, and cancel said {answer} of a running {kind}; declare it if it "
        f"is so, else return CANNOT_STOP and report its real end",
    )
    gate.open()
    await rig.ended([task], life)


async def _stops_one_of_a_batch(rig: Rig, make: Callable[[Path, int], ComputeTask], kind: str) -> None:
    """Let a kind of task be short, so that batches are made of it; then stop those that run, which do not end."""
    life = await rig.shared()
    folder = rig.new_folder()
    shut = folder / "shut"
    await rig.finish([make(folder, number) for number in range(20)], life)
    shut.touch()
    batch = {number: make(folder, number) for number in range(20, 40)}

    def begun() -> set[int]:
        return {number for number in batch if (folder / str(number)).exists()}

    try:
        await rig.submit(list(batch.values()), life)
        await rig.until(begun, f"no worker began any of the {kind}s")
        running = begun()
        answer = await rig.cancel([batch[number] for number in running], life)
    finally:
        shut.unlink()
    await rig.ended(list(batch.values()), life)
    for number, task in batch.items():
        if number in running:
            check(
                answer[task.uid] is CancelResult.STOPPED,
                f"cancel said {answer[task.uid]} of a running {kind} that may share a batch with others; the backend "
                f"declares cancel_{kind}s, so stop it there too: give what waits behind it back by Returned",
            )
            must_be(task, TaskState.CANCELED, f"a running {kind} that was canceled")
        else:
            must_be(task, TaskState.DONE, f"a {kind} that waited behind one that was canceled")
        book = folder / str(number)
        ran = len(book.read_text().splitlines()) if book.exists() else 0
        check(ran == 1, f"{kind} number {number} ran {ran} times")


async def stands_still(rig: Rig, heart: Path, otherwise: str) -> None:
    """Wait until a file is no longer written to for thirty times the beat."""
    seen = heart.read_text()
    still = 0

    def no_beat() -> bool:
        nonlocal seen, still
        now = heart.read_text()
        still = still + 1 if now == seen else 0
        seen = now
        return still > 30

    await rig.until(no_beat, otherwise)
