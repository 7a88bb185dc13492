"""`rhapsody run`: a script with a journal, and the same script again from where it was."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from rhapsody.errors import JournalError
from rhapsody.observers.journal.reader import JournalReader


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--resume", type=click.Path(path_type=Path), metavar="SESSION_DIR", help="Go on with this session.")
@click.option("--rerun", is_flag=True, help="With --resume: run again what ran when the session was killed.")
@click.argument("script", type=click.Path(exists=True, dir_okay=False))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(resume: Path | None, rerun: bool, script: str, arguments: tuple[str, ...]) -> None:
    """Run a Python script whose sessions keep a journal.

    With --resume, tasks that were done in that session are not run again: they have their results at once. The script's
    first session goes on in that folder, with its name.
    """
    environment = dict(os.environ)
    environment["RHAPSODY_JOURNAL"] = environment.get("RHAPSODY_JOURNAL", "").strip() or "1"
    if resume is not None:
        JournalReader(resume).close()
        environment["RHAPSODY_RESUME"] = str(resume.absolute())
        environment["RHAPSODY_JOURNAL"] = "rerun" if rerun else "resume"
    elif rerun:
        raise JournalError("--rerun says how to resume a session: name it by --resume SESSION_DIR")
    os.execve(sys.executable, [sys.executable, script, *arguments], environment)  # noqa: S606  # the user's own script
