"""Reads journals as anybody can: by SQL."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from rhapsody.api import Session


def rows(path: Path | Session, query: str) -> list[tuple[Any, ...]]:
    """Return what a query gives on the journal of a session, or in a folder."""
    folder = path.sandbox if isinstance(path, Session) else path
    with closing(sqlite3.connect(f"file:{folder}/journal.db?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()
