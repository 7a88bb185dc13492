"""The file of a journal, opened for writing: one process at a time, in groups of rows."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rhapsody.errors import JournalError
from rhapsody.observers.journal.schema import COLUMNS, FILE, LOCK, RESULTS, TABLES, VERSION
from rhapsody.version import __version__

# Rows of one statement. The interpreter's lock is released once for each statement, and a thread that computes may then
# keep it for 5 ms (sys.getswitchinterval): a statement a row, as with executemany, would take seconds for 1,000 rows.
_ROWS: Final = 400
_NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "afs", "9p", "lustre", "gpfs", "beegfs", "ceph", "fuse.sshfs"}
)
_MOUNTS: Final = Path("/proc/self/mounts")


class Store:
    """Writes one journal. Only one thread may use it at a time.

    Args:
        folder: of the session; made if it is not there.

    Attributes:
        path: of the file.
        run: the number of this run of the session; a session that is resumed has several.
        first: by table, a number that no row of it has.
        on_network: whether the folder is on a file system that machines share; the file then has no write-ahead log.

    Raises:
        JournalError: the folder cannot be written, another session holds it, or the file is none of ours or newer.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._statements: dict[tuple[str, int], str] = {}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _lock(folder)
        except OSError as error:
            raise JournalError(
                f"the journal {self.path} cannot be written: {error}; choose another work_dir"
            ) from error
        try:
            self.on_network = is_on_network(folder)
            self._connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=10)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise
        except sqlite3.Error as error:
            os.close(self._lock)
            raise JournalError(f"the journal {self.path} cannot be used: {error}; move it away, or choose another uid "
                               f"for the session") from error  # fmt: skip
        except BaseException:
            os.close(self._lock)
            raise

    def _prepare(self) -> None:
        execute = self._connection.execute
        version = execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise JournalError(
                f"the journal {self.path} has version {version}, and this rhapsody-core writes version {VERSION}: "
                f"upgrade rhapsody-core, or choose another uid for the session"
            )
        execute(f"PRAGMA journal_mode={'DELETE' if self.on_network else 'WAL'}")
        execute("PRAGMA synchronous=NORMAL")  # what was committed survives the loss of the process; not a power cut's
        with self._transaction():
            for statement in TABLES.split(";"):
                execute(statement)
            execute(f"PRAGMA user_version={VERSION}")
        self.first = {
            table: (execute(f"SELECT MAX(id) FROM {table}").fetchone()[0] or 0) + 1  # noqa: S608  # names of our own
            for table in ("tasks", "calls", "workers")
        }

    def begin(self, session: str, backends: Sequence[str]) -> None:
        """Record that a run of the session began."""
        with self._transaction():
            self.run = self._connection.execute(
                "INSERT INTO runs(session, backends, started, host, pid, python, rhapsody, command, first_task) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (session, ", ".join(backends), time.time(), platform.node(), os.getpid(), platform.python_version(),
                 __version__, " ".join(sys.argv), self.first["tasks"]),
            ).lastrowid  # fmt: skip

    def write(self, group: Mapping[str, Sequence[Any]]) -> None:
        """Write rows of several tables: all of them, or none.

        Args:
            group: by table, the values of its rows one after the other; a row whose number is there replaces it.

        Raises:
            sqlite3.Error: nothing of the group was written; the disk may be full.
        """
        with self._transaction():
            for table, columns in COLUMNS.items():
                values = group.get(table, ())
                for start in range(0, len(values), _ROWS * columns):
                    part = values[start : start + _ROWS * columns]
                    self._connection.execute(self._insert(table, len(part) // columns), part)

    def write_result(self, task: int, pickled: bytes) -> str:
        """Write a large result into a file of its own, and return its path within the session's folder."""
        name = f"{RESULTS}/{task}.pickle"
        path = self.path.parent / name
        path.parent.mkdir(exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_bytes(pickled)
        unfinished.rename(path)
        return name

    def end(self) -> None:
        """Record that the run ended as it should."""
        with self._transaction():
            self._connection.execute("UPDATE runs SET ended = ? WHERE id = ?", (time.time(), self.run))

    def close(self) -> None:
        """Close the file, and let others have it."""
        self._connection.close()
        os.close(self._lock)

    def _insert(self, table: str, rows: int) -> str:
        known = self._statements.get((table, rows))
        if known is None:
            row = f"({', '.join('?' * COLUMNS[table])})"
            known = f"INSERT OR REPLACE INTO {table} VALUES {', '.join([row] * rows)}"  # noqa: S608  # names of our own
            if rows == _ROWS:
                self._statements[table, rows] = known
        return known

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._connection.in_transaction:  # some errors have rolled it back
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


def _lock(folder: Path) -> int:
    """Take the folder for this process; the kernel gives it back however the process ends.

    Raises:
        JournalError: another session has it.
    """
    path = folder / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise JournalError(
            f"the journal in {folder} is being written by {holder}: two sessions cannot share a folder; "
            f"give one of them another uid"
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
    return descriptor


def is_on_network(folder: Path, mounts: Path = _MOUNTS) -> bool:
    """Whether machines share the file system of a folder: SQLite's write-ahead log does not work there.

    Args:
        folder: any path.
        mounts: the kernel's table of file systems, in the format of /proc/self/mounts.
    """
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:  # no Linux
        return False
    found, kind = "", ""
    real = str(folder.resolve())
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        if len(point) >= len(found) and (real == point or real.startswith(point.rstrip("/") + "/")):
            found, kind = point, fields[2]
    return kind in _NETWORK
