"""What can happen to a `TaskFlow`, and the promise that holds whatever does: no loop, clock or engine.

A history accepts and cancels tasks; batches are taken, refused or left pending; and an engine runs, returns and reports
tasks, truly or with repeated, late and foreign reports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rhapsody.api import Attempt, Batching, ComputeTask, Resources, Retry, TaskState
from rhapsody.errors import BackendLostError, SubmitError
from rhapsody.plugin import BackendLost, Capacity, CapacityChanged, Event, Outcome, Returned, Started
from rhapsody.scheduling.batching import AdaptiveBatching
from rhapsody.scheduling.instructions import (
    AskBack,
    AskCancel,
    Change,
    Choose,
    Deliver,
    Lost,
    Submit,
    TryAgain,
)
from rhapsody.scheduling.taskflow import TaskFlow
from rhapsody.sessions.recorder import apply

from tests.core.scheduling.promise import Cancel
from tests.core.scheduling.stops import Stops

WANTED = (
    *[None] * 4,
    Resources(),
    Resources(cores_per_rank=2),
    Resources(gpus_per_rank=0.5),
    Resources(memory=60),
    Resources(exclusive=True),
)
POLICIES: tuple[int | str, ...] = ("default", 1, 3, 5)
TRIES = 3  # attempts of a task that has retries
ENDS = (TaskState.DONE, TaskState.FAILED, TaskState.CANCELED)


class History(Stops):
    """One flow, the runner that carries its instructions out, and an engine.

    Args:
        choices: numbers, each of which chooses what happens next, or how.
    """

    def __init__(self, choices: Sequence[int]) -> None:
        self.choices = iter(choices)
        can_cancel = self.one_of([True, True, False])
        self.most = self.one_of([None, None, 2, 5])  # tasks that the engine may hold
        batching = AdaptiveBatching(Batching(max_tasks=4))
        self.flow = TaskFlow("puppet", batching, can_cancel=can_cancel, most=self.most)
        self.packs = self.one_of([False, True])  # whether core packs the tasks of this engine
        self.capacity = self.some_capacity([1, 2, 3], [None, 1, 2, 4], [None])
        self.opened = self.ended = False
        self.now = 0.0
        self.accepted: list[ComputeTask] = []
        self.finals: dict[str, list[TaskState]] = {}  # recorded, by uid
        self.runs: dict[str, int] = {}  # times that the engine began a task
        self.queued: list[ComputeTask] = []  # at the engine, not begun
        self.delayed: list[ComputeTask] = []  # held by the session, until their next attempts
        self.running: list[ComputeTask] = []
        self.channel: list[Event] = []  # reported, and not applied yet
        self.pending: list[ComputeTask] | None = None  # a submission that has not returned
        self.lost: list[Exception] = []
        self.cancels: list[Cancel] = []
        self.unwanted: set[str] = set()  # uids that the engine was asked to stop
        self.outcome_of_submit = "taken"
        self.policy: int | str = "default"  # or how many tasks the backend's own takes, or how that breaks

    def some_capacity(self, slots: Sequence[int], units: Sequence[int | None], tasks: Sequence[int | None]) -> Capacity:
        limits = self.one_of(slots), self.one_of(units), self.one_of(tasks)
        return Capacity(*limits, cores=self.one_of([4, 2, 1]), gpus=1, memory=100) if self.packs else Capacity(*limits)

    def happenings(self) -> list[Callable[[], None]]:
        """Return what can happen next; what matters most more than once."""
        engine = [self.engine_begins, self.engine_returns, self.engine_begins] if self.queued else []
        if self.running:
            engine += [self.engine_ends, self.engine_ends, self.engine_returns_what_began]
        if self.channel:
            engine += [self.events_arrive] * 4
        if self.pending is not None:
            engine += [self.submission_returns] * 2
        if self.cancels:
            engine += [self.cancel_goes_on] * 3
        if self.delayed:
            engine += [self.attempt_comes] * 2
        if not self.opened and not self.ended:
            engine += [self.open] * 4
        if len(self.accepted) > 8:
            engine += [self.backend_ends, self.batch_hook_breaks] if self.one_of(range(8)) == 7 else []
        if any(task.state is TaskState.RUNNING for task in self.accepted):
            engine += [self.timeout_passes]
        if self.accepted:
            engine += [self.deadline_passes]
        return [self.accept, self.cancel, self.hooks_behave, self.engine_repeats, self.engine_resizes, *engine]

    def run(self, steps: int) -> None:
        """Let one thing after the other happen, and check the promise after each."""
        for _ in range(steps):
            self.one_of(self.happenings())()
            self.nothing_is_lost()
            self.a_task_ends_once_and_runs_once()
            self.nothing_outlives_the_backend()
            self.batches_add_up()
            self.nothing_waits_beside_room()
            self.nothing_idle_is_counted()

    # -- the runner ------------------------------------------------------------------------------------------------

    def carry_out(self, instructions: list[Any]) -> None:
        for instruction in instructions:
            if isinstance(instruction, Deliver):
                self.record(instruction.changes)
            elif isinstance(instruction, Choose):
                self.carry_out(self.choose(instruction))
            elif isinstance(instruction, Submit):
                self.carry_out(self.submit(list(instruction.batch.tasks)))
            elif isinstance(instruction, TryAgain):
                self.set_back(instruction)
            elif isinstance(instruction, AskBack):
                self.give_back([task for task in instruction.tasks if task in self.queued])
            elif isinstance(instruction, Lost):
                self.lost.append(instruction.error)

    def record(self, changes: Any) -> None:
        change: Change
        for change in changes:
            task, event = change
            stopped = isinstance(event, Outcome) and event.state is TaskState.CANCELED
            assert not (stopped and task.policies and task.policies.expired), "its time is over, and it ends CANCELED"
            if apply(task, event) and isinstance(event, Outcome):
                self.finals.setdefault(task.uid, []).append(task.state)

    def set_back(self, again: TryAgain) -> None:
        """An attempt failed; the session hands the task over once more, at once or later."""
        task = again.task
        assert not task.is_final, "it has ended, and is tried again"
        assert task.uid not in self.unwanted, "it was to be stopped, and is tried again"
        assert task.policies is not None
        assert again.backend == "puppet"
        assert task.policies.expired is None, "its last attempt was too long, and the next one is stopped for it"
        task.policies.past.append(Attempt("puppet", again.outcome.exception, None, None, None))
        assert len(task.policies.past) < TRIES, "it is tried too often"
        task.state, task.started_at = TaskState.WAITING, None
        self.runs.pop(task.uid, None)
        self.delayed.append(task)

    def attempt_comes(self) -> None:
        task = self.one_of(self.delayed)
        self.delayed.remove(task)
        task.state = TaskState.QUEUED
        self.carry_out(self.flow.accept([task]))

    def choose(self, instruction: Choose) -> list[Any]:
        backlog, policy = instruction.backlog, self.policy
        assert len(backlog)
        if policy == "default":
            return self.flow.chosen(self.flow._batching.rhapsody_batch(backlog), self.now)
        if isinstance(policy, int):
            return self.flow.chosen(backlog.take(policy), self.now)
        taken = backlog.take(2)
        answers = {"raises": ValueError(), "none": [], "other": [ComputeTask(function=int) for _ in taken]}
        instructions = self.flow.chosen(answers[policy], self.now)
        self.ended = True
        return instructions

    def submit(self, tasks: list[ComputeTask]) -> list[Any]:
        assert self.pending is None, "another submission is under way"
        assert 0 < self.flow._in_flight <= (self.capacity.units or 99), "there is no room"
        assert self.capacity.slots
        for task in tasks:
            assert not task.is_final, "it has ended, and goes to the engine"
            assert not self.runs.get(task.uid), "it ran, and goes to the engine again"
            assert task.uid not in self.unwanted, "it was to be stopped, and goes to the engine again"
            assert task not in self.queued + self.running, "the engine has it"
        if self.outcome_of_submit == "refused":
            return self.refuse(tasks, SubmitError("the queue is full"))
        self.queued += tasks
        if self.outcome_of_submit == "pending":
            self.pending = tasks
            return []
        return self.flow.submitted()

    def refuse(self, tasks: list[ComputeTask], error: Exception) -> list[Any]:
        instructions = self.flow.refused(error, self.now)
        ends = [each for each in instructions if isinstance(each, Deliver | TryAgain)]
        self.carry_out(ends)
        assert all(task.is_final or task in self.delayed for task in tasks)
        return instructions[len(ends) :]

    # -- the user --------------------------------------------------------------------------------------------------

    def accept(self) -> None:
        retries = self.one_of([0, 0, Retry(TRIES), Retry(TRIES, on=["lost"])])
        kind: dict[str, Any] = {"retries": retries} if retries else {}
        kind |= self.one_of([{}, {}, {"timeout": 1.0, "deadline": 9.0}, {"priority": 3}])
        count = self.one_of(range(1, 7))
        tasks = [ComputeTask(function=int, resources=self.one_of(WANTED), **kind) for _ in range(count)]
        for task in tasks:
            task.state = TaskState.QUEUED
        self.accepted += tasks
        self.carry_out(self.flow.accept(tasks))

    # -- the backend -----------------------------------------------------------------------------------------------

    def open(self) -> None:
        self.opened = True
        self.carry_out(self.flow.open(self.capacity))

    def hooks_behave(self) -> None:
        self.outcome_of_submit = self.one_of(["taken", "taken", "pending", "refused"])
        self.policy = self.one_of(POLICIES)

    def batch_hook_breaks(self) -> None:
        self.policy = self.one_of(["raises", "none", "other"])

    def submission_returns(self) -> None:
        """A pending submission succeeds, or is refused while the engine began none of it."""
        tasks, self.pending = self.pending or [], None
        if self.one_of([False, True]) and all(task in self.queued for task in tasks):
            self.queued = [task for task in self.queued if task not in tasks]
            self.carry_out(self.refuse(tasks, OSError("no route")))
        else:
            self.carry_out(self.flow.submitted())

    def engine_begins(self) -> None:
        task = self.one_of(self.queued)
        self.queued.remove(task)
        self.running.append(task)
        self.runs[task.uid] = self.runs.get(task.uid, 0) + 1
        if self.one_of([True, False]):
            self.channel.append(Started(task.uid, self.now))

    def engine_ends(self) -> None:
        """A task ends, as it should or in a state that is no end."""
        task, seconds = self.one_of(self.running), self.one_of([0.0, 0.01, 1.0])
        state = self.one_of([*ENDS, TaskState.RUNNING])
        self.running.remove(task)
        self.now += seconds
        self.channel.append(Outcome(task.uid, state, started_at=self.now - seconds, ended_at=self.now))

    def engine_returns(self) -> None:
        self.give_back(self.some_of(self.queued))

    def give_back(self, tasks: Sequence[ComputeTask]) -> None:
        self.queued = [task for task in self.queued if task not in tasks]
        self.channel.append(Returned([task.uid for task in tasks]))

    def engine_returns_what_began(self) -> None:
        """A backend breaks its contract; where it reported the start, the task is not run twice."""
        task = self.one_of(self.running)
        self.running.remove(task)
        self.channel += [Started(task.uid, self.now), Returned([task.uid])]

    def engine_repeats(self) -> None:
        """A report comes twice, late, or of a task that this engine never had."""
        ended = [task.uid for task in self.accepted if task.is_final]
        uid = self.one_of([*ended, "nobody"])
        outcome = Outcome(uid, self.one_of(ENDS))
        reports: list[Event] = [outcome, Started(uid, self.now), Returned([uid]), Returned([])]
        self.channel.append(self.one_of(reports))

    def engine_resizes(self) -> None:
        self.channel.append(CapacityChanged(self.some_capacity([1, 2, 3, 0], [None, 1, 4], [None, 1, 8])))

    def events_arrive(self) -> None:
        count = self.one_of(range(len(self.channel), 0, -1))
        events, self.channel = self.channel[:count], self.channel[count:]
        for event in events:
            if isinstance(event, CapacityChanged):
                self.capacity = event.capacity
        self.carry_out(self.flow.apply(events, self.now))

    def backend_ends(self) -> None:
        how = self.one_of(["lost", "no event", "stop", "end"])
        error = BackendLostError("the node is down")
        if how == "lost":
            self.channel.append(BackendLost(error))
        elif how == "no event":
            self.channel.append("what is this")  # type: ignore[arg-type]  # a backend that breaks its contract
        elif how == "stop":
            self.flow.stop()
        else:
            self.ended = True
            self.carry_out(self.flow.end(error))

    def finish(self) -> None:
        """Whatever has happened, the end of the backend ends every task, and every cancel is answered."""
        self.carry_out(self.flow.end(BackendLostError("the session closes")))
        while self.delayed:
            self.attempt_comes()
        for cancel in list(self.cancels):
            while cancel in self.cancels:
                self.go_on(cancel, {} if isinstance(cancel.step, AskCancel) else None)
        assert {task.uid: len(self.finals[task.uid]) for task in self.accepted} == {t.uid: 1 for t in self.accepted}
