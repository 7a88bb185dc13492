"""The life of the tasks of one backend, without I/O: events in, instructions out.

Tasks wait in the backlog, on our side, until there is room at the engine; a batch is chosen by `rhapsody_batch` and
handed over by `rhapsody_submit`; events end or return its tasks. Nothing that was accepted is lost: a task is in the
backlog, or held by a batch, or has ended.

    accept, apply, ...  ->  Choose  ->  chosen  ->  Submit  ->  submitted | refused  ->  Choose ...
                        ->  Deliver (what happened to tasks), Lost (the backend is given up)

Each method of `TaskFlow` is an event: it changes what the flow knows, and returns instructions, which its driver
carries out in order before the next event. The flow has no loop, clock, engine or hook: time is passed in, and what
became of an instruction is the next event. `tests/core/scheduling` runs it through random histories.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rhapsody.errors import InvalidBackendError, WorkerLostError
from rhapsody.model.outcome import Outcome, Returned, Started
from rhapsody.model.states import FINAL_STATES, TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.scheduling.backlog import Backlog
from rhapsody.scheduling.batching import AdaptiveBatching, LearnedBatch, problem_with
from rhapsody.scheduling.canceling import CancelSteps, Expiring, cancel_steps, settle_expired, stopped_outcome
from rhapsody.scheduling.instructions import (
    AskBack,
    Change,
    Choose,
    Deliver,
    Dropped,
    HeldBatch,
    Instruction,
    Lost,
    Submit,
)
from rhapsody.scheduling.outcomes import normalize_outcome, submit_error
from rhapsody.scheduling.overdue import SharedBatches
from rhapsody.scheduling.packing import Packing
from rhapsody.scheduling.retries import next_attempt
from rhapsody.seam.capacity import Capacity, CapacityChanged
from rhapsody.seam.channel import BackendLost, Event


class TaskFlow:
    """What waits for one backend, what its engine holds, and the way between.

    Args:
        name: of the backend.
        batching: core's default `rhapsody_batch`, which learns from what ends.
        can_cancel: whether the backend can stop what its engine holds.
        most: tasks that the engine holds, at most; None for as many as it takes.

    Attributes:
        is_open: whether batches may go to the engine.
    """

    def __init__(self, name: str, batching: AdaptiveBatching, *, can_cancel: bool, most: int | None = None) -> None:
        self.name = name
        self.is_open = False
        self._batching = batching
        self._can_cancel = can_cancel
        self._backlog = Backlog()
        self._packing = Packing(self._backlog, batching.length_of, most)
        self._now = 0.0  # of the latest event that says so
        self._choose = Choose(self._backlog)
        self._has_policies = False  # whether any task ever asked for more than to be run
        self._choosing = False  # whether a Choose is being carried out
        self._submitting: HeldBatch | None = None  # one at a time: the next choice uses what this one leaves
        self._held: dict[str, ComputeTask] = {}  # tasks that the engine holds
        self._started: set[str] = set()  # uids of those whose start was reported
        self._canceling: set[str] = set()  # uids of those that the engine was asked to stop
        self._in_flight = 0  # batches that the engine holds
        self.expiring = Expiring()
        self.shared = SharedBatches()  # those of them that hold several tasks
        self._batches = 0  # batches ever
        self._error: Exception | None = None  # with which all fails that is accepted from now on

    # -- the life of the backend -----------------------------------------------------------------------------------

    def open(self, capacity: Capacity) -> list[Instruction]:
        """The engine is ready: batches may go down."""
        self._packing.resize(capacity)
        self.is_open = True
        return self._next()

    def stop(self) -> None:
        """Nothing more goes down; what the engine holds may still end."""
        self.is_open = False

    def lose(self, error: Exception) -> list[Instruction]:
        """The backend is given up: everything that it holds, and everything that waits for it, fails."""
        return [Lost(error), *self.end(error)] if self.is_open else []

    def end(self, error: Exception) -> list[Instruction]:
        """The backend is gone: whatever has no outcome by now fails with this error."""
        self.is_open = False
        self._error = error
        tasks = [*self._held.values(), *self._backlog.drain(), *self.expiring.drain()]
        self._held.clear()
        self._started.clear()
        self._canceling.clear()
        self._in_flight = 0
        self.shared.clear()
        for task in tasks:
            task._batch = None
        return self._deliver([(task, Outcome(task.uid, TaskState.FAILED, exception=error)) for task in tasks])

    # -- tasks go down ---------------------------------------------------------------------------------------------

    def accept(self, tasks: Sequence[ComputeTask]) -> list[Instruction]:
        """The session has accepted tasks: they wait for room."""
        asking = [task.policies for task in tasks if task.policies is not None]
        self._has_policies = self._has_policies or bool(asking)
        prior = any(policies.priority for policies in asking)
        is_ahead = self._packing.add(tasks, by_priority=prior, in_flight=self._in_flight, held=len(self._held))
        if self._error is not None:
            return self.end(self._error)
        late = [task for task in self._held.values() if task.uid not in self._started] if is_ahead else []
        return [AskBack(late), *self._next()] if late else self._next()

    def chosen(self, answer: object, now: float) -> list[Instruction]:
        """`rhapsody_batch` has answered, or raised: then the answer is the exception.

        Args:
            answer: what it returned.
            now: seconds, of any steady clock.
        """
        self._choosing = False
        self._now = now
        backlog = self._backlog
        taken = backlog.taken()
        if not self.is_open:  # since it was asked for
            backlog.put_back(taken)
            return self.end(self._error) if self._error is not None else []
        if (problem := problem_with(answer, taken)) is not None:
            backlog.put_back(taken)
            return self.lose(InvalidBackendError(f"rhapsody_batch of backend {self.name!r} {problem}"))
        self._batches += 1
        spare = self._in_flight >= self._packing.capacity.slots
        tasks: tuple[ComputeTask, ...] = tuple(answer)  # type: ignore[arg-type]  # there is no problem with it
        batch = HeldBatch(self._batches, tasks, now, type(answer) is LearnedBatch, spare, len(tasks))
        held = self._held
        for task in tasks:
            task._batch = batch
            held[task.uid] = task
        self._packing.begin(batch, now)
        self._in_flight += 1
        self.shared.add(batch)
        self._submitting = batch
        return [Submit(batch)]

    def submitted(self) -> list[Instruction]:
        """The submission has returned: the engine holds the batch."""
        self._submitting = None
        return self._next()

    def interrupted(self) -> None:
        """The submission was canceled, and whether the engine holds the batch is unknown: it may still report it."""
        self._submitting = None

    def refused(self, error: Exception, now: float) -> list[Instruction]:
        """The engine did not take the batch: those of its tasks that have not ended fail, and say why."""
        batch, self._submitting = self._submitting, None
        assert batch is not None
        problem = submit_error(error, self.name)
        tasks = [task for task in batch.tasks if task._batch is batch]
        return self.apply([Outcome(task.uid, TaskState.FAILED, exception=problem) for task in tasks], now)

    def _next(self) -> list[Instruction]:
        """Ask for the next batch while tasks wait and there is room."""
        if self._choosing or self._submitting is not None or not self.is_open or not self._backlog.waiting:
            return []
        if not self._packing.has_room(self._in_flight, len(self._held)):
            return []
        self._choosing = self._packing.offer(self._in_flight, len(self._held), self._now)
        refused = self._deliver(self._packing.unmet(self.name))
        return [*refused, self._choose] if self._choosing else refused

    def overdue(self, now: float) -> list[ComputeTask]:
        """Return tasks to ask back from the engine: they wait behind a long one. `now` is of `chosen`'s clock."""
        if self._packing.capacity.tasks is not None:  # the engine runs those of a batch side by side
            return []
        is_idle = not self._backlog.waiting and self._in_flight < self._packing.capacity.slots
        batches = self.shared.overdue(now, self._batching.target(), self._started, is_idle=is_idle)
        return [t for batch in batches for t in batch.tasks if t._batch is batch and t.uid not in self._started]

    # -- events come up --------------------------------------------------------------------------------------------

    def apply(self, events: Iterable[Event], now: float) -> list[Instruction]:
        """The engine has reported events; submit what there is room for after them.

        Args:
            events: in order.
            now: seconds, of the clock that `chosen` was given.
        """
        instructions: list[Instruction] = []
        changes: list[Change] = []
        self._now = now
        is_counting = self._packing.is_counting
        held, started, canceling, done = self._held, self._started, self._canceling, TaskState.DONE
        observe = self._batching.observe
        unknown = 0
        for event in events:
            if type(event) is Outcome:
                task = held.pop(event.uid, None)
                if task is None:
                    unknown += 1
                    continue
                if canceling:
                    canceling.discard(event.uid)
                if started:
                    started.discard(event.uid)
                if is_counting:
                    self._packing.end(event.uid)
                if event.state is not done:
                    normalize_outcome(event, task, self.name)
                batch: HeldBatch = task._batch  # in this loop, since a call for each task would cost 1% of a no-op
                task._batch = None
                batch.left -= 1
                if batch.learns and event.started_at is not None and event.ended_at is not None:
                    seconds = event.ended_at - event.started_at
                    batch.work += seconds
                    observe(task, seconds)
                if not batch.left:
                    self._finish(batch, now)
                changes.append((task, event))
            elif type(event) is Started:
                task = held.get(event.uid)
                if task is None or event.uid in started:
                    unknown += 1
                else:
                    started.add(event.uid)
                    changes.append((task, event))
            elif type(event) is Returned:
                unknown += self._take_back(event.uids, changes, now)
            elif type(event) is CapacityChanged:
                self._packing.resize(event.capacity)
            else:
                error: Exception
                if type(event) is BackendLost:
                    error = event.error
                else:
                    error = InvalidBackendError(f"backend {self.name!r} reported {event!r}, which is no event")
                instructions += self._deliver(changes)
                instructions += self.lose(error)
                changes = []
        if self._backlog.has_priorities:
            self._packing.observe(changes)
        if unknown:
            instructions.append(Dropped(unknown))
        instructions += self._deliver(changes)
        instructions += self._next()
        return instructions

    def _deliver(self, changes: list[Change]) -> list[Instruction]:
        """Have changes recorded, all but the ends of tasks that are tried again."""
        if not changes or not self._has_policies:
            return [Deliver(changes)] if changes else []
        instructions: list[Instruction] = []
        kept: list[Change] = []
        for task, event in changes:
            again = None
            if type(event) is Outcome and task.policies is not None:
                settle_expired(task, event)
                again = next_attempt(task, event, self.name, is_open=self._error is None)
            if again is None:
                kept.append((task, event))
            if again is None or self.expiring.hold(again):
                continue
            if kept:  # in order: the start of the attempt comes before its end
                instructions.append(Deliver(kept))
                kept = []
            instructions.append(again)
        return [*instructions, Deliver(kept)] if kept else instructions

    def _finish(self, batch: HeldBatch, now: float) -> None:
        """The last task of a batch has ended, or came back."""
        self._in_flight -= 1
        self._packing.end(batch.uid)
        self.shared.discard(batch)
        if batch.learns and batch.work and not batch.spare:
            self._batching.observe_batch(len(batch.tasks), now - batch.submitted_at - batch.work)

    def _take_back(self, uids: Sequence[str], changes: list[Change], now: float) -> int:
        """Put tasks that never started back at the front. Returns how many were not there to take."""
        tasks: list[ComputeTask] = []
        unknown = 0
        for uid in uids:
            task = self._held.pop(uid, None)
            if task is None:
                unknown += 1
                continue
            batch: HeldBatch = task._batch
            task._batch = None
            batch.left -= 1
            self._packing.end(uid)
            if not batch.left:
                self._finish(batch, now)
            if uid in self._started:  # it may have had effects: it is not run twice
                self._started.discard(uid)
                text = f"backend {self.name!r} gave task {uid} back after it had started"
                changes.append((task, Outcome(uid, TaskState.FAILED, exception=WorkerLostError(text))))
            elif uid in self._canceling:
                changes.append((task, stopped_outcome(task)))
            elif task.state not in FINAL_STATES:  # else its session has closed without its end
                tasks.append(task)
            self._canceling.discard(uid)
        self._backlog.put_back(tasks)
        self._batching.distrust(len(tasks), self._packing.capacity.slots)
        return unknown

    # -- cancel ----------------------------------------------------------------------------------------------------

    def cancel(self, tasks: Iterable[ComputeTask]) -> CancelSteps:
        """Somebody asks to stop tasks: what `canceling.cancel_steps` yields is carried out step by step."""
        return cancel_steps(self, tasks)

    @property
    def can_ask(self) -> bool:
        """Whether the backend can be asked to stop what its engine holds."""
        return self._can_cancel and self.is_open

    @property
    def is_submitting(self) -> bool:
        """Whether a submission has not returned: its tasks cannot be stopped until the engine has them."""
        return self._submitting is not None

    def withdraw(self, tasks: Iterable[ComputeTask]) -> list[Change]:
        """Cancel those tasks that wait; the backlog passes over them when their turn comes."""
        waiting = [task for task in tasks if task._batch is None and task.state is TaskState.QUEUED]
        self._backlog.forget(waiting)
        return [(task, stopped_outcome(task)) for task in waiting]

    def give_up(self, tasks: Iterable[ComputeTask]) -> None:
        """Run these tasks of the engine's no more: those that come back are canceled, those that fail not retried."""
        for task in tasks:
            self._canceling.add(task.uid)
            if task.policies is not None:
                task.policies.is_unwanted = True

    def explain(self, task: ComputeTask) -> str:
        """Return a sentence that says what a task of this backend waits for, where it runs, or how it ended."""
        if task.state in FINAL_STATES:
            return f"task {task.uid} is {task.state}"
        if task.uid not in self._held:
            return self._packing.explain(task, self.name)
        if task.uid in self._started:
            return f"task {task.uid} runs on backend {self.name!r}{f' at {task.ran_on}' if task.ran_on else ''}"
        return f"task {task.uid} was handed to backend {self.name!r}, which has not reported its start"
