"""What becomes of the tasks of a batch whose worker is gone: the one judgement of it, for every backend."""

from __future__ import annotations

from collections.abc import Container

from rhapsody.errors import WorkerLostError
from rhapsody.model.outcome import Outcome, Returned
from rhapsody.model.states import TaskState
from rhapsody.protocol.batch import TaskBatch
from rhapsody.seam.channel import Event


def settle_lost(
    batch: TaskBatch, ended: Container[str], begun: Container[str] | None, canceled: Container[str], *, why: str
) -> list[Event]:
    """Return the events that end a batch whose worker is gone. Pure: report what the worker had sent before.

    A task that ended keeps its result; one that was canceled is CANCELED; one that may have begun fails with
    WorkerLostError, because no task runs twice; the others never started and run elsewhere.

    Args:
        batch: what the worker held.
        ended: uids of the tasks whose outcome is reported.
        begun: uids of the tasks that may have begun; None if that is unknown, and each may have.
        canceled: uids of the tasks that were asked to stop.
        why: how the worker ended, for the message of the error: it follows "task UID: ".
    """
    events: list[Event] = []
    returned: list[str] = []
    for task in batch.shipped:
        uid = task.uid
        if uid in ended:
            continue
        if uid in canceled:
            events.append(Outcome(uid, TaskState.CANCELED))
        elif begun is None or uid in begun:
            events.append(Outcome(uid, TaskState.FAILED, exception=WorkerLostError(f"task {uid}: {why}")))
        else:
            returned.append(uid)
    if returned:
        events.append(Returned(returned))
    return events
