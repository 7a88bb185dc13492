"""Reads a journal, also one that is being written."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs

from rhapsody.errors import JournalError
from rhapsody.observers.journal.schema import FILE, VERSION


@attrs.frozen(kw_only=True)
class Run:
    """One run of a session.

    Attributes:
        number: counts the runs of the session.
        first_task: the number of its first task; those below belong to the runs before.
        ended: seconds since the epoch; None if it was killed, or still runs.
    """

    number: int
    session: str
    backends: str
    started: float
    ended: float | None
    host: str
    pid: int
    python: str
    rhapsody: str
    command: str
    first_task: int


@attrs.frozen
class TaskRow:
    """One task, as the journal has it; times in seconds since the epoch."""

    number: int
    uid: str
    name: str
    text: str
    backend: str
    resources: str | None
    tag: str | None
    state: str
    submitted: float
    started: float | None
    ended: float | None
    worker: str | None
    attempt: int
    error_type: str | None
    error: str | None
    traceback: str | None


@attrs.frozen
class AttemptRow:
    """One attempt at a task that was tried again; times in seconds since the epoch, the error by its type."""

    uid: str
    text: str
    attempt: int
    backend: str
    worker: str | None
    started: float | None
    ended: float | None
    error: str | None


_TASKS = """
SELECT t.id, t.uid, c.name, c.text, c.backend, c.resources, c.tag, t.state, t.submitted, t.started, t.ended,
    w.name, t.attempt, e.type, e.message, e.traceback
FROM tasks t JOIN calls c ON t.call = c.id LEFT JOIN workers w ON t.worker = w.id LEFT JOIN errors e ON e.task = t.id
WHERE t.id >= ? AND t.id < ? ORDER BY t.id
"""
_ATTEMPTS = """
SELECT t.uid, c.text, a.attempt, a.backend, w.name, a.started, a.ended, a.error
FROM attempts a JOIN tasks t ON a.task = t.id JOIN calls c ON t.call = c.id LEFT JOIN workers w ON a.worker = w.id
WHERE t.id >= ? AND t.id < ? ORDER BY t.id, a.attempt
"""


class JournalReader:
    """Reads the journal in the folder of a session; closes it when it is left as a context.

    Args:
        folder: of the session, or the file itself.

    Raises:
        JournalError: there is none, it is none, or a newer version wrote it.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder)
        self.path = path if path.name.endswith(".db") else path / FILE
        if not self.path.is_file():
            raise JournalError(f"there is no journal {self.path}: name the folder of a session that had journal=True")
        try:
            self._connection = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)
            try:
                version = self._connection.execute("PRAGMA user_version").fetchone()[0]
                if not 1 <= version <= VERSION:
                    raise JournalError(
                        f"the journal {self.path} has version {version}; this rhapsody-core reads up to {VERSION}"
                        + (": upgrade rhapsody-core" if version > VERSION else " and from 1: it is none of ours")
                    )
            except BaseException:
                self._connection.close()
                raise
        except sqlite3.Error as error:
            raise JournalError(f"the journal {self.path} cannot be read: {error}") from error

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def runs(self) -> list[Run]:
        """Return the runs of the session, the first one first."""
        query = (
            "SELECT id, session, backends, started, ended, host, pid, python, rhapsody, command, first_task "
            "FROM runs ORDER BY id"
        )
        names = [field.name for field in attrs.fields(Run)]
        return [Run(**dict(zip(names, row, strict=True))) for row in self._connection.execute(query)]

    def tasks(self, run: Run | None = None) -> Iterator[TaskRow]:
        """Yield the tasks of a run, or of all, in the order of their submit."""
        for row in self._connection.execute(_TASKS, self._range(run)):
            yield TaskRow(*row)

    def attempts(self, run: Run | None = None) -> Iterator[AttemptRow]:
        """Yield each attempt at the tasks of a run, or of all, that were tried again, in the order of their submit."""
        for row in self._connection.execute(_ATTEMPTS, self._range(run)):
            yield AttemptRow(*row)

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        return self._connection.execute(sql, values).fetchall()

    def _range(self, run: Run | None) -> tuple[int, int]:
        return (1, 1 << 62) if run is None else (run.first_task, self._first_after(run))

    def _first_after(self, run: Run) -> int:
        [(first,)] = self.query("SELECT MIN(first_task) FROM runs WHERE id > ?", run.number)
        return 1 << 62 if first is None else int(first)
