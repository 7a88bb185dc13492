"""What several commands share: options of a backend on the command line, and how a machine reads the results."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click
from rich.console import Console

from rhapsody.backends.lookup import get_backend
from rhapsody.errors import BackendConfigurationError
from rhapsody.seam.backend import AttachableBackend

Function = TypeVar("Function", bound=Callable[..., Any])


def backend_arguments() -> Callable[[Function], Function]:
    """Add `--backend NAME` and `--option KEY=VALUE` to a command, as its arguments `backend` and `options`."""

    def add(function: Function) -> Function:
        function = option_argument()(function)
        return click.option(
            "-b",
            "--backend",
            metavar="NAME",
            help="The backend. Default: the one named in RHAPSODY_BACKEND, else concurrent.",
        )(function)

    return add


def option_argument() -> Callable[[Function], Function]:
    """Add `--option KEY=VALUE` to a command, as its argument `options`."""
    return click.option(
        "-o",
        "--option",
        "options",
        multiple=True,
        metavar="KEY=VALUE",
        help="An argument of the backend, as JSON or as plain text: -o executor=processes -o max_workers=4.",
    )


def read_options(options: Iterable[str]) -> dict[str, Any]:
    """Read `KEY=VALUE`, of which the value is JSON, or else text.

    Raises:
        click.BadParameter: an option without `=`.
    """
    arguments: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{option!r} is not KEY=VALUE", param_hint="--option")
        try:
            arguments[key] = json.loads(value)
        except ValueError:
            arguments[key] = value
    return arguments


def build_backend(name: str, options: Iterable[str]) -> AttachableBackend:
    """Build a backend from the command line.

    Args:
        name: as in `rhapsody backends`.
        options: as `read_options` takes them.

    Raises:
        BackendError: as `get_backend` does.
        click.BadParameter: an option without `=`.
    """
    arguments = read_options(options)
    try:
        return get_backend(name, **arguments)
    except TypeError as error:
        raise BackendConfigurationError(f"backend {name!r}: {error}") from error


def print_json(value: object) -> None:
    """Print for a machine."""
    click.echo(json.dumps(value, indent=2, default=str))


def console() -> Console:
    """Return a console that writes to standard output as it is at the time of the call."""
    return Console(highlight=False)


@contextmanager
def scratch() -> Iterator[str]:
    """Yield a folder for sessions: RHAPSODY_WORK_DIR where that is set, else a temporary one."""
    chosen = os.environ.get("RHAPSODY_WORK_DIR")
    if chosen:
        yield chosen
    else:
        with tempfile.TemporaryDirectory(prefix="rhapsody-") as folder:
            yield folder
