"""Mutants that ignore how a task is to be scheduled."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from rhapsody.plugin import BackendContext, Event, Outcome, Started, TaskBatch, hookimpl

from .base import Mutant, mutant


@mutant("test_failed_function_runs_again", "ran 1 times")
class RemembersEndsByUid(Mutant):
    """Reports the end of an earlier task of the same uid, as an engine does that caches by name."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: dict[str, Outcome] = {}

    def tamper(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Outcome):
            self.ends[event.uid] = event
        return [event]

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        await super().rhapsody_init(context)
        self.context = context

    @hookimpl
    def rhapsody_submit(self, batch: TaskBatch) -> None:
        known = [self.ends[task.uid] for task in batch.tasks if task.uid in self.ends]
        if known:
            self.context.events.put(known)
        else:
            super().rhapsody_submit(batch)


@mutant("test_kept_results_stay", "which is no KeptResult")
class KeepsNothing(Mutant):
    """Declares that it keeps results, and sends home what stands for them."""

    executor = "processes"

    def __init__(self) -> None:
        super().__init__()
        self.capabilities = attrs.evolve(self.capabilities, keep_results=True)


@mutant("test_function_is_stopped_at_timeout", "the time begins with the Started")
class ReportsNoStarts(Mutant):
    """Reports when a task began only with its end, so that the time of a timeout never begins."""

    executor = "processes"

    def tamper(self, event: Event) -> Sequence[Event]:
        return [] if isinstance(event, Started) else [event]
