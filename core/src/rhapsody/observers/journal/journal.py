"""`Journal`: the observer that writes a session's journal."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Sequence
from typing import Final

from rhapsody.errors import JournalError
from rhapsody.hookspecs import ObservedSession, hookimpl
from rhapsody.log import get_logger
from rhapsody.model.outcome import Outcome
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.model.transition import Transition
from rhapsody.observers.content import Contents
from rhapsody.observers.journal.notes import Notes
from rhapsody.observers.journal.recall import Recall
from rhapsody.observers.journal.records import write_group
from rhapsody.observers.journal.store import Store

log = get_logger(__name__)
_PERIOD: Final = 0.2  # seconds between groups; with the time that a group takes, half a second is the most that is lost
_MANY: Final = 3000  # transitions that are written without waiting for the end of the period
_DONE: Final = TaskState.DONE


class Journal:
    """Writes what happens in a session into `journal.db` in its sandbox, by a thread of its own.

    The session's thread only notes what may change later: what a task runs, and its result.

    Args:
        required: refuse further tasks once the journal cannot be written; otherwise they go on, and an error is
            logged.
        resume: give tasks the results that an earlier run has left; True, or "rerun" to run again what was interrupted.
    """

    def __init__(self, required: bool = False, resume: bool | str = False) -> None:
        self.problem: JournalError | None = None
        self._required = required or bool(resume)
        self._resume = resume
        self._recall: Recall | None = None
        self._contents = Contents()
        self._notes: Notes | None = None
        self._wake = threading.Event()
        self._woken = False  # for a group that is large
        self._closing = False
        self._writer: threading.Thread | None = None
        self._owner = os.getpid()

    @hookimpl
    def rhapsody_session_opened(self, session: ObservedSession) -> None:
        """Open the file, and start to write."""
        try:
            if self._resume:
                self._recall = Recall(session.sandbox, rerun=self._resume == "rerun")
            store = Store(session.sandbox)
            store.begin(session.uid, session.backends)
        except JournalError as error:
            self._stop(error)
            return
        if store.on_network:
            log.warning("journal_on_network", path=str(store.path), consequence="written without a write-ahead log")
        self._notes = notes = Notes(self._contents, session.backends[0], store.first)
        self._writer = threading.Thread(target=self._write, args=(store, notes), name="rhapsody journal", daemon=True)
        self._writer.start()
        atexit.register(self._finish)  # a session that nobody closes loses nothing either

    @hookimpl
    def rhapsody_tasks_submitted(self, tasks: Sequence[ComputeTask]) -> dict[str, Outcome]:
        """Return what an earlier run has done; refuse tasks that could not be written, where that was asked for."""
        if self._required and self.problem is not None:
            raise self.problem
        if self._recall is None:
            return {}
        keys = ((task, self._contents.call_of(task).key) for task in tasks)
        found = {task.uid: self._recall.outcome_of(task, key) for task, key in keys if key is not None}
        known = {uid: outcome for uid, outcome in found.items() if outcome is not None}
        if self._notes is not None:
            self._notes.recalled |= {uid for uid, outcome in known.items() if outcome.state is _DONE}
        return known

    @hookimpl
    def rhapsody_tasks_changed(self, transitions: Sequence[Transition]) -> None:
        """Note changes for the writer."""
        notes = self._notes
        if notes is None or self._writer is None or self.problem is not None:
            return
        notes.add(transitions)
        if not self._woken and len(notes.group) > _MANY:
            self._woken = True
            self._wake.set()

    @hookimpl
    def rhapsody_session_closed(self) -> None:
        """Write what is left, and close the file."""
        self._finish()

    def _finish(self) -> None:
        if self._recall is not None:
            self._recall.close()
        writer, self._writer = self._writer, None
        if writer is None or os.getpid() != self._owner:  # a forked program has no such thread
            return
        atexit.unregister(self._finish)
        self._closing = True
        self._wake.set()
        writer.join()

    def _write(self, store: Store, notes: Notes) -> None:
        """Write groups until the session ends: the thread's work."""
        try:
            while True:
                closing = self._closing
                if not closing:
                    self._wake.wait(_PERIOD)
                    self._wake.clear()
                    closing = self._closing
                self._woken = False
                group, numbers = notes.take()
                if len(group):
                    write_group(store, group, numbers, notes.workers)
                elif closing:
                    store.end()
                    return
        except Exception as error:  # the disk is full, say: the tasks go on
            self._stop(JournalError(f"the journal {store.path} cannot be written any more: {error}"))
        finally:
            store.close()

    def _stop(self, error: JournalError) -> None:
        self.problem = error
        log.error("journal_stopped", error=str(error), tasks="refused" if self._required else "go on")
