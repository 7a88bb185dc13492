"""The command `rhapsody` itself."""

from __future__ import annotations

import click
import pytest
from rhapsody.cli import COMMANDS, group

from .conftest import Environment, rhapsody


def test_help_lists_every_command(environment: Environment) -> None:
    """`rhapsody --help` lists every command."""
    text = rhapsody("--help", environment=environment).stdout
    assert all(f"\n  {name} " in text for name in ("demo", "backends", "doctor"))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_explain_themselves(command: str) -> None:
    """Every command is in its module and explains itself."""
    found = group.get_command(click.Context(group), command)
    assert found is not None
    assert len(found.get_help(click.Context(found)).splitlines()) > 5


def test_version_is_the_distributions(environment: Environment) -> None:
    """`--version` is the version of the distribution."""
    import rhapsody as package

    assert rhapsody("--version", environment=environment).stdout.strip().endswith(package.__version__)


def test_unknown_command_is_an_error(environment: Environment) -> None:
    """An unknown command is an error in a sentence."""
    done = rhapsody("demonstrate", environment=environment, check=False)
    assert done.returncode == 2
    assert "No such command 'demonstrate'" in done.stderr
