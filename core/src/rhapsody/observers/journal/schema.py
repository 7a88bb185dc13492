"""The tables of a journal, and the version of the file."""

from __future__ import annotations

from typing import Final

VERSION: Final = 1  # PRAGMA user_version; a change that an older reader would misread raises it
FILE: Final = "journal.db"
LOCK: Final = "journal.lock"  # held by the session that writes
RESULTS: Final = "results"  # the folder of results that are too large for a table

# A task that has the usual life (it waited, ran once and ended) is one row of `tasks`: its three times are its three
# transitions. Whatever else happened to a task is in `transitions`, and the view `history` shows both as one list.
TABLES: Final = """
CREATE TABLE IF NOT EXISTS runs(
    id INTEGER PRIMARY KEY, session TEXT, backends TEXT, started REAL, ended REAL, host TEXT, pid INTEGER,
    python TEXT, rhapsody TEXT, command TEXT, first_task INTEGER);
CREATE TABLE IF NOT EXISTS calls(
    id INTEGER PRIMARY KEY, key TEXT, kind TEXT, name TEXT, text TEXT, backend TEXT, resources TEXT, tag TEXT);
CREATE TABLE IF NOT EXISTS workers(id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE IF NOT EXISTS tasks(
    id INTEGER PRIMARY KEY, uid TEXT, call INTEGER, state TEXT, submitted REAL, started REAL, ended REAL,
    worker INTEGER, attempt INTEGER);
CREATE TABLE IF NOT EXISTS transitions(task INTEGER, state TEXT, at REAL);
CREATE TABLE IF NOT EXISTS results(
    task INTEGER PRIMARY KEY, value BLOB, file TEXT, missing TEXT, exit_code INTEGER, stdout TEXT, stderr TEXT,
    stdout_path TEXT, stderr_path TEXT);
CREATE TABLE IF NOT EXISTS errors(
    task INTEGER PRIMARY KEY, type TEXT, message TEXT, traceback TEXT);
CREATE TABLE IF NOT EXISTS attempts(
    task INTEGER, attempt INTEGER, backend TEXT, worker INTEGER, started REAL, ended REAL, error TEXT,
    PRIMARY KEY(task, attempt)) WITHOUT ROWID;
CREATE VIEW IF NOT EXISTS history(task, state, at) AS
    SELECT id, 'QUEUED', submitted FROM tasks WHERE id NOT IN (SELECT task FROM transitions)
    UNION ALL SELECT id, 'RUNNING', started FROM tasks
        WHERE started IS NOT NULL AND id NOT IN (SELECT task FROM transitions)
    UNION ALL SELECT id, state, ended FROM tasks WHERE ended IS NOT NULL AND id NOT IN (SELECT task FROM transitions)
    UNION ALL SELECT task, state, at FROM transitions;
"""

# Of a task that was tried again, `attempts` has each attempt, and `tasks` the last.

# How many values a row of each table takes, in the order in which a group is written.
COLUMNS: Final = {
    "workers": 2, "calls": 8, "results": 9, "errors": 4, "transitions": 3, "attempts": 7, "tasks": 9,
}  # fmt: skip
