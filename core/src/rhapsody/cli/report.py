"""`rhapsody report`: what a session's journal shows, as a page or for other tools."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TextIO

import click

from rhapsody.errors import JournalError
from rhapsody.observers.journal.reader import JournalReader, Run
from rhapsody.observers.report.exports import write_chrome_trace, write_csv, write_json
from rhapsody.observers.report.figures import figures
from rhapsody.observers.report.page import page

_WRITERS = {"csv": write_csv, "json": write_json, "chrome-trace": write_chrome_trace}


@click.command()
@click.argument("session_dir", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file to write; `-` is standard output.")
@click.option("--run", "number", type=click.IntRange(min=1), help="Which run of a session that was resumed: the last.")
@click.option("--csv", "form", flag_value="csv", help="Write a table of tasks instead of a page.")
@click.option("--json", "form", flag_value="json", help="Write the tasks as JSON.")
@click.option("--chrome-trace", "form", flag_value="chrome-trace", help="Write a trace that Perfetto and Chrome open.")
def command(session_dir: Path, output: Path | None, number: int | None, form: str | None) -> None:
    """Show what happened in a session that kept a journal.

    Writes report.html into the session's folder: one page that needs no network. --csv, --json and --chrome-trace
    write to standard output unless --output names a file.
    """
    with JournalReader(session_dir) as journal:
        run = _run(journal, number)
        if form is None:
            output = output or journal.path.parent / "report.html"
        with _opened(output) as file:
            if form is None:
                file.write(page(figures(journal, run)))
            else:
                _WRITERS[form](journal, run, file)
    if output is not None and str(output) != "-":
        click.echo(output)


def _run(journal: JournalReader, number: int | None) -> Run:
    runs = journal.runs()
    if not runs:
        raise JournalError(f"the journal {journal.path} has no run: the session did not start")
    if number is not None and number > len(runs):
        raise JournalError(f"the journal {journal.path} has {len(runs)} runs, and none of number {number}")
    return runs[-1 if number is None else number - 1]


def _opened(output: Path | None) -> contextlib.AbstractContextManager[TextIO]:
    if output is None or str(output) == "-":
        return contextlib.nullcontext(sys.stdout)
    try:
        return output.open("w", encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{output} cannot be written: {error}") from error
