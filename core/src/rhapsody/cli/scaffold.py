"""`rhapsody new-backend`: writes a complete distribution with a working backend, to be changed into one's own."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Final

import click

from .. import __version__
from ..discovery import KNOWN, available_backends

# Where each template goes.
_FILES: Final = {
    "pyproject.toml.in": "pyproject.toml",
    "README.md.in": "README.md",
    "__init__.py.in": "src/@package@/__init__.py",
    "backend.py.in": "src/@package@/backend.py",
    "worker.py.in": "src/@package@/worker.py",
    "test_conformance.py.in": "tests/test_conformance.py",
    "ci.yml.in": ".github/workflows/test.yml",
}
_NAME: Final = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")


@click.command()
@click.argument("name")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path),
    help="Where to write it; made if it is not there. Default: rhapsody-NAME in the current directory.",
)
def command(name: str, folder: Path | None) -> None:
    """Write a new backend NAME: a distribution that installs, works, and passes the conformance suite.

    Put your engine in the place of the one that it comes with, and run its tests until they pass again.
    """
    problem = _problem(name)
    if problem:
        raise click.BadParameter(problem, param_hint="NAME")
    values = names(name)
    folder = folder or Path(values["distribution"])
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise click.BadParameter(f"{folder} exists and is not an empty folder", param_hint="--dir")
    for path in write(folder, values):
        click.echo(path)
    click.echo(
        f"\nNext:\n  cd {folder}\n  python -m pip install -e '.[test]'\n  rhapsody doctor {name}\n  python -m pytest"
    )


def names(name: str) -> dict[str, str]:
    """Return what stands for the placeholders in the templates."""
    words = re.split(r"[_-]", name)
    return {
        "name": name,
        "distribution": f"rhapsody-{'-'.join(words)}",
        "package": f"rhapsody_{'_'.join(words)}",
        "class": f"{''.join(word.capitalize() for word in words)}ExecutionBackend",
        "version": __version__,
    }


def write(folder: Path, values: dict[str, str]) -> list[Path]:
    """Write the distribution; return its files."""
    written = []
    for template, target in _FILES.items():
        text = resources.files(__package__).joinpath("template", template).read_text(encoding="utf-8")
        path = folder / _filled(target, values)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_filled(text, values), encoding="utf-8")
        written.append(path)
    return written


def _filled(text: str, values: dict[str, str]) -> str:
    return re.sub(r"@(name|distribution|package|class|version)@", lambda match: values[match[1]], text)


def _problem(name: str) -> str:
    if not _NAME.fullmatch(name):
        return f"{name!r} is no name for a backend: small letters and digits, words joined by - or _, as in my-engine"
    taken = {info.name for info in available_backends()} | set(KNOWN)
    if name in taken:
        return f"there is a backend {name!r} already"
    return ""
