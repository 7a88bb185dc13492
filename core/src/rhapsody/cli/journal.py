"""`rhapsody journal`: the journals in a folder, what is in one of them, and the removal of old ones."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import click

from rhapsody import settings
from rhapsody.errors import JournalError
from rhapsody.observers.cache import entries
from rhapsody.observers.journal.reader import JournalReader, Run
from rhapsody.observers.journal.schema import FILE, LOCK, RESULTS

_DAY = 86_400
_SHOWN = 20  # tasks that did not succeed


@click.group()
def command() -> None:
    """List journals, show one, or remove those of sessions that ended long ago."""


@command.command("ls")
@click.argument("work_dir", type=click.Path(path_type=Path, file_okay=False), required=False)
def _ls(work_dir: Path | None) -> None:
    """List the sessions in WORK_DIR (the current folder, or RHAPSODY_WORK_DIR) that kept a journal."""
    for journal in _journals(work_dir or settings.work_dir()):
        runs = journal.runs()
        counts = ", ".join(f"{count} {state}" for state, count in _states(journal)) or "no tasks"
        click.echo(f"{journal.path.parent.name}  {_when(runs)}  {counts}")


@command.command("show")
@click.argument("session_dir", type=click.Path(path_type=Path))
def _show(session_dir: Path) -> None:
    """Show the runs of a session, how many tasks have each state, and those that failed."""
    with JournalReader(session_dir) as journal:
        for run in journal.runs():
            ended = "" if run.ended is None else f", ended {_local(run.ended)}"
            click.echo(f"run {run.number}: {run.host} process {run.pid}, started {_local(run.started)}{ended}")
        for state, count in _states(journal):
            click.echo(f"{count:>8} {state}")
        failed = journal.query(
            "SELECT t.uid, c.text, e.type, e.message FROM errors e JOIN tasks t ON e.task = t.id "
            "JOIN calls c ON t.call = c.id ORDER BY t.id LIMIT ?",
            _SHOWN,
        )
        for uid, text, kind, message in failed:
            click.echo(f"{uid}  {text}  {kind}: {message.splitlines()[0] if message else ''}")


@command.command("prune")
@click.argument("work_dir", type=click.Path(path_type=Path, file_okay=False), required=False)
@click.option("--older-than", "days", type=click.FloatRange(min=0), default=30.0, show_default=True, help="In days.")
@click.option("--dry-run", is_flag=True, help="Name what would be removed, and remove nothing.")
def _prune(work_dir: Path | None, days: float, dry_run: bool) -> None:
    """Remove old journals in WORK_DIR, and cached results that no session has used for as long.

    Other files of a session stay, and so do journals that are being written.
    """
    folder, before = work_dir or settings.work_dir(), time.time() - days * _DAY
    for journal in _journals(folder):
        path = journal.path
        if path.stat().st_mtime < before and not _is_held(path.parent):
            click.echo(path)
            if not dry_run:
                for name in (FILE, f"{FILE}-wal", f"{FILE}-shm", LOCK):
                    (path.parent / name).unlink(missing_ok=True)
                shutil.rmtree(path.parent / RESULTS, ignore_errors=True)
                with contextlib.suppress(OSError):  # other files are in it
                    path.parent.rmdir()
    for entry in entries(folder):
        if entry.stat().st_mtime < before:
            click.echo(entry.path)
            if not dry_run:
                Path(entry.path).unlink(missing_ok=True)


def _journals(work_dir: Path) -> Iterator[JournalReader]:
    """Yield the journals in a folder of sessions, by name; one that cannot be read is a line on stderr."""
    for path in sorted(work_dir.glob(f"*/{FILE}")):
        try:
            journal = JournalReader(path)
        except JournalError as error:
            click.echo(str(error), err=True)
            continue
        with journal:
            yield journal


def _states(journal: JournalReader) -> list[tuple[str, int]]:
    rows = journal.query("SELECT state, COUNT(*) FROM tasks GROUP BY state ORDER BY state")
    return [(state, count) for state, count in rows]


def _is_held(folder: Path) -> bool:
    """Whether a session writes the journal in a folder."""
    try:
        with (folder / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _when(runs: list[Run]) -> str:
    return _local(runs[-1].started) if runs else "not started"


def _local(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "seconds")
