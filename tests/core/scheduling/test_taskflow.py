"""The state machine of one backend's tasks: events in, instructions out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rhapsody.api import Batching, CancelResult, ComputeTask, TaskState
from rhapsody.errors import BackendError, BackendLostError, InvalidBackendError, SubmitError, WorkerLostError
from rhapsody.plugin import BackendLost, Capacity, CapacityChanged, Outcome, Returned, Started
from rhapsody.scheduling.batching import AdaptiveBatching, LearnedBatch
from rhapsody.scheduling.instructions import (
    AskBack,
    AskCancel,
    AwaitEnds,
    AwaitSubmit,
    Choose,
    Deliver,
    Dropped,
    Lost,
    Submit,
)
from rhapsody.scheduling.taskflow import TaskFlow
from rhapsody.sessions.recorder import apply

from .history import History


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_any_history_keeps_the_promise(count: int) -> None:
    """Whatever happens, each task ends once, runs once at most, and what a cancel answers is true."""

    @settings(max_examples=count, deadline=None, derandomize=True, database=None)
    @given(choices=st.binary(min_size=100, max_size=600))
    def keeps_the_promise(choices: bytes) -> None:
        history = History(choices)
        history.run(steps=len(choices) // 4)
        history.finish()

    keeps_the_promise()


def tasks(count: int) -> list[ComputeTask]:
    made = [ComputeTask(function=int) for _ in range(count)]
    for task in made:
        task.state = TaskState.QUEUED
    return made


def flow(capacity: Capacity | None = None, *, can_cancel: bool = True, most: int | None = None) -> TaskFlow:
    made = TaskFlow("puppet", AdaptiveBatching(Batching()), can_cancel=can_cancel, most=most)
    assert made.open(capacity or Capacity(1)) == []
    return made


def done(task: ComputeTask) -> Outcome:
    return Outcome(task.uid, TaskState.DONE)


def submit(flow: TaskFlow, instructions: list[Any], count: int) -> Submit:
    """Choose that many tasks; leave their submission under way."""
    choose = instructions[-1]
    assert isinstance(choose, Choose)
    (instruction,) = flow.chosen(choose.backlog.take(count), 0.0)
    assert isinstance(instruction, Submit)
    return instruction


def record(instruction: Any) -> dict[str, Outcome | Started]:
    assert isinstance(instruction, Deliver)
    for task, event in instruction.changes:
        apply(task, event)
    return {task.uid: event for task, event in instruction.changes}


def test_nothing_goes_down_before_open() -> None:
    """Tasks wait until the engine is ready, and then a batch is chosen."""
    closed = TaskFlow("puppet", AdaptiveBatching(Batching()), can_cancel=True)
    assert closed.accept(tasks(2)) == []
    (choose,) = closed.open(Capacity(4))
    assert isinstance(choose, Choose)
    assert (len(choose.backlog), choose.backlog.slots, choose.backlog.free) == (2, 4, 4)


def test_one_submission_at_a_time() -> None:
    """The next batch is chosen once the submission of the last one has returned."""
    one = flow(Capacity(4))
    submit(one, one.accept(tasks(3)), 1)
    assert one.accept(tasks(1)) == []
    assert one.apply([CapacityChanged(Capacity(9))], 0.0) == []
    assert isinstance(one.submitted()[0], Choose)


def test_no_batch_beyond_capacity() -> None:
    """No batch is chosen while the engine holds as many batches, or tasks, as it takes."""
    one = flow(Capacity(2, tasks=3))
    batch = submit(one, one.accept(tasks(5)), 3).batch
    assert one.submitted() == []
    (delivered, choose) = one.apply([done(batch.tasks[0])], 0.0)
    record(delivered)
    assert isinstance(choose, Choose)


@pytest.mark.parametrize(("slots", "batches"), [(4, [1, 1, 1, 1, 1, 1]), (2, [3, 3])])
def test_max_in_flight_bounds_what_is_held(slots: int, batches: list[int]) -> None:
    """The engine holds at most so many tasks, spread over its slots, whatever batches the backend would choose."""
    one = flow(Capacity(slots, units=99), most=6)
    instructions, held = one.accept(tasks(20)), []
    while instructions:
        held.append(submit(one, instructions, 20).batch)
        instructions = one.submitted()
    assert [len(batch) for batch in held] == batches
    (delivered, choose) = one.apply([done(held[0].tasks[0])], 0.0)
    record(delivered)
    assert len(submit(one, [choose], 20).batch) == 1


def test_first_urgent_task_asks_others_back() -> None:
    """Where the engine holds many tasks ahead, those that have not begun are asked back for the first urgent one."""
    one = flow(Capacity(2, tasks=100))
    plain, (urgent,) = tasks(50), [ComputeTask(function=int, priority=5)]
    urgent.state = TaskState.QUEUED
    submit(one, one.accept(plain), 50)
    submitted = one.submitted()
    assert submitted == []
    record(one.apply([Started(plain[0].uid, 0.0)], 0.0)[0])
    (ask,) = one.accept([urgent])
    assert isinstance(ask, AskBack)
    assert ask.tasks == plain[1:]
    (choose,) = one.apply([Returned([task.uid for task in plain[1:]])], 0.0)
    batch = submit(one, [choose], 50).batch
    assert batch.tasks == (urgent, plain[1], plain[2])  # and no more: what runs soon, and one ahead for each slot
    outcomes = [Outcome(task.uid, TaskState.DONE, started_at=0.0, ended_at=0.001) for task in batch.tasks]
    choose = [*one.submitted(), *one.apply(outcomes, 0.0)][-1]
    assert (
        len(submit(one, [choose], 50).batch) == 2 * (1 + 10) - 1
    )  # of 10 ms for each slot, now that lengths are known


def test_returned_tasks_go_first() -> None:
    """Tasks that come back are chosen before those that wait."""
    one = flow(Capacity(2))
    many = tasks(4)
    submit(one, one.accept(many), 2)
    submit(one, one.submitted(), 1)
    one.submitted()
    (choose,) = one.apply([Returned([many[0].uid, many[1].uid])], 0.0)
    assert submit(one, [choose], 3).batch.tasks == (many[0], many[1], many[3])


def test_started_task_is_not_run_again() -> None:
    """A task that comes back after its start was reported fails."""
    one = flow()
    (task,) = tasks(1)
    submit(one, one.accept([task]), 1)
    one.submitted()
    (delivered,) = one.apply([Started(task.uid, 1.0), Returned([task.uid])], 2.0)
    record(delivered)
    assert isinstance(task.exception, WorkerLostError)


@pytest.mark.parametrize("event", [BackendLost(BackendLostError("down")), "what is this"])
def test_lost_backend_fails_all_but_the_ended(event: Any) -> None:
    """What was reported before a loss counts; all that is held, waits or comes later fails with its error."""
    one = flow()
    many = tasks(3)
    submit(one, one.accept(many), 2)
    one.submitted()
    ended, lost, failed = one.apply([done(many[0]), event], 0.0)
    assert isinstance(lost, Lost)
    assert record(ended).keys() == {many[0].uid}
    assert record(failed).keys() == {many[1].uid, many[2].uid}
    (late,) = tasks(1)
    (failed,) = one.accept([late])
    record(failed)
    assert [task.exception for task in (*many[1:], late)] == [lost.error] * 3
    assert one.lose(ValueError()) == []


@pytest.mark.parametrize("answer", [ValueError(), None, [], "xy", tasks(2)])
def test_wrong_choice_loses_the_backend(answer: object) -> None:
    """A `rhapsody_batch` that raises, or returns other tasks than it took, gives the backend up."""
    one = flow()
    many = tasks(3)
    (choose,) = one.accept(many)
    assert isinstance(choose, Choose)
    choose.backlog.take(2)
    lost, failed = one.chosen(answer, 0.0)
    assert isinstance(lost, Lost)
    assert isinstance(lost.error, InvalidBackendError)
    assert record(failed).keys() == {task.uid for task in many}


def test_refused_batch_fails_alone() -> None:
    """The tasks of a refused batch fail, but for those that have ended; the others go down."""
    one = flow()
    many = tasks(3)
    submit(one, one.accept(many), 2)
    record(one.apply([done(many[0])], 0.0)[0])
    delivered, choose = one.refused(OSError("no route"), 0.0)
    record(delivered)
    assert isinstance(choose, Choose)
    assert isinstance(many[1].exception, SubmitError)
    assert [task.state for task in many] == [TaskState.DONE, TaskState.FAILED, TaskState.QUEUED]


def test_unknown_reports_are_counted() -> None:
    """Reports of tasks that are not held are dropped, and counted."""
    one = flow()
    (task,) = tasks(1)
    (dropped,) = one.apply([done(task), Started(task.uid, 0.0), Returned(["other"])], 0.0)
    assert isinstance(dropped, Dropped)
    assert dropped.count == 3


def test_senseless_outcomes_are_mended() -> None:
    """An outcome that is no end, or fails without an exception, is a failure that names the backend."""
    one = flow(Capacity(2))
    many = tasks(2)
    submit(one, one.accept(many), 2)
    one.submitted()
    events = [Outcome(many[0].uid, TaskState.RUNNING), Outcome(many[1].uid, TaskState.FAILED)]
    record(one.apply(events, 0.0)[0])
    assert [type(task.exception) for task in many] == [BackendError, BackendError]


def test_only_default_choices_are_learned_from() -> None:
    """The default policy learns what a batch of its own is charged, and nothing of a backend's own."""
    one = flow()
    for kind, cost in ((list, None), (LearnedBatch, 2.0)):
        (task,) = tasks(1)
        (choose,) = one.accept([task])
        assert isinstance(choose, Choose)
        one.chosen(kind(choose.backlog.take(1)), 10.0)
        one.submitted()
        outcome = Outcome(task.uid, TaskState.DONE, started_at=5.0, ended_at=8.0)
        record(one.apply([outcome], 15.0)[0])
        assert one._batching.batch_cost == cost


# -- cancel ------------------------------------------------------------------------------------------------------------


def test_cancel_of_waiting_asks_nobody() -> None:
    """A task that waits is canceled at once, and passed over by the next choice."""
    one = flow()
    first, second = tasks(2)
    (choose,) = one.accept([first, second])
    steps = one.cancel([first, first])
    record(next(steps))
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value == {first.uid: CancelResult.NEVER_STARTED}
    assert submit(one, [choose], 1).batch.tasks == (second,)


def test_cancel_of_held_asks_the_backend() -> None:
    """What the engine holds is asked for, its end awaited, and the answer is what became of it."""
    one = flow(Capacity(2))
    many = tasks(2)
    submit(one, one.accept(many), 2)
    one.submitted()
    steps = one.cancel(many)
    ask = next(steps)
    assert isinstance(ask, AskCancel)
    assert ask.tasks == many
    wait = steps.send({many[0].uid: CancelResult.STOPPED})
    assert isinstance(wait, AwaitEnds)
    assert wait.uids == [many[0].uid]
    record(one.apply([Outcome(many[0].uid, TaskState.CANCELED)], 0.0)[0])
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value == {many[0].uid: CancelResult.STOPPED, many[1].uid: CancelResult.CANNOT_STOP}


def test_cancel_without_the_hook_asks_nobody() -> None:
    """Where the backend cannot stop tasks, what it holds cannot be stopped."""
    one = flow(can_cancel=False)
    (task,) = tasks(1)
    submit(one, one.accept([task]), 1)
    one.submitted()
    with pytest.raises(StopIteration) as end:
        next(one.cancel([task]))
    assert end.value.value == {task.uid: CancelResult.CANNOT_STOP}


def test_canceled_task_that_returns_is_canceled() -> None:
    """A task that comes back while the engine is asked to stop it is canceled, and not run again."""
    one = flow()
    (task,) = tasks(1)
    submit(one, one.accept([task]), 1)
    one.submitted()
    steps = one.cancel([task])
    assert isinstance(next(steps), AskCancel)
    (delivered,) = one.apply([Returned([task.uid])], 0.0)
    record(delivered)
    with pytest.raises(StopIteration) as end:
        steps.send({task.uid: CancelResult.TOO_LATE})
    assert end.value.value == {task.uid: CancelResult.NEVER_STARTED}


def test_cancel_during_a_submission() -> None:
    """A task that comes back while its cancel waits for a submission is canceled, and the backend is not asked."""
    one = flow(Capacity(2))
    first, second = tasks(2)
    submit(one, one.accept([first, second]), 1)
    submit(one, one.submitted(), 1)
    steps = one.cancel([first])
    assert isinstance(next(steps), AwaitSubmit)
    (delivered,) = one.apply([Returned([first.uid])], 0.0)
    record(delivered)
    assert one.submitted() == []
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value == {first.uid: CancelResult.NEVER_STARTED}
