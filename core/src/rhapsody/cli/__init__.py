"""The command line: `rhapsody COMMAND`. Each command is a module of this package, imported when it is run.

To add a command, write a module with a click command named `command`, and add its line to `COMMANDS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Final

import click

from rhapsody import __version__
from rhapsody.compat import BOTH_INSTALLED, is_overwritten
from rhapsody.errors import RhapsodyError

# A command's name: the module of this package that has it, and the line of the help.
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "demo": ("demo", "Survey the Python standard library as an ensemble of tasks."),
    "backends": ("backends", "List the backends that are installed, and those that could be."),
    "bench": ("bench", "Measure what a task costs, beside the raw engine in the same run."),
    "run": ("run", "Run a script whose sessions keep a journal, or go on with one of them."),
    "report": ("report", "Show what happened in a session that kept a journal, as a page."),
    "journal": ("journal", "List the journals of sessions, show one, or remove old ones."),
    "doctor": ("doctor", "Run a function and a program on each installed backend, and say what is wrong."),
    "new-backend": ("scaffold", "Write a new backend: a distribution that installs, works and passes the suite."),
}


class LazyGroup(click.Group):
    """Knows its commands from a table, and imports the one that is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        try:
            command = importlib.import_module(f"{__name__}.{COMMANDS[cmd_name][0]}").command
        except ImportError as error:
            if is_overwritten():
                raise click.ClickException(BOTH_INSTALLED) from error
            raise
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error of RHAPSODY's own is a sentence, not a traceback."""
        try:
            return super().invoke(ctx)
        except RhapsodyError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rhapsody")
def group() -> None:
    """Run ensembles of functions and executables on any execution backend."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line: the `rhapsody` script."""
    group.main(args=list(args) if args is not None else None, prog_name="rhapsody")
