"""`rhapsody new-backend`: writes a complete distribution with a working backend, to be changed into one's own."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Final

import click

from rhapsody import __version__
from rhapsody.seam.discovery import KNOWN, available_backends

# Where each template goes.
_FILES: Final = {
    "pyproject.toml.in": "pyproject.toml",
    "README.md.in": "README.md",
    "__init__.py.in": "src/@package@/__init__.py",
    "backend_@kind@.py.in": "src/@package@/backend.py",
    "bench.py.in": "src/@package@/bench.py",
    "test_conformance.py.in": "tests/test_conformance.py",
    "ci.yml.in": ".github/workflows/test.yml",
}
_WORKER: Final = {"worker.py.in": "src/@package@/worker.py"}  # of an engine with workers of its own
# What each kind of engine is, and what the README says of the one that the backend comes with.
KINDS: Final = {
    "future": "each batch is a call of an engine that gives futures; here a pool of threads, for functions",
    "polled": "each batch is a job of an engine that must be polled; here a process",
    "worker": "each batch goes to a worker of the backend's own; here a process",
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
@click.option(
    "--kind",
    type=click.Choice(list(KINDS)),
    default="worker",
    show_default=True,
    help="What your engine is like: it gives futures, its jobs are polled, or its workers are the backend's own.",
)
def command(name: str, folder: Path | None, kind: str) -> None:
    """Write a new backend NAME: a distribution that installs, works, and passes the conformance suite.

    Put your engine in the place of the one that it comes with, and run its tests until they pass again.
    """
    problem = _problem(name)
    if problem:
        raise click.BadParameter(problem, param_hint="NAME")
    values = names(name) | of_kind(kind)
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


def of_kind(kind: str) -> dict[str, str]:
    """Return what stands for the placeholders that depend on the kind of engine."""
    has_processes = kind != "future"
    return {
        "kind": kind,
        "about": KINDS[kind],
        "die": ", die" if has_processes else "",
        "loss": "    kill_worker = staticmethod(die)\n" if has_processes else "",
        "worker": "| `src/@package@/worker.py` | what runs on the engine |\n" if kind == "worker" else "",
    }


def write(folder: Path, values: dict[str, str]) -> list[Path]:
    """Write the distribution; return its files."""
    written = []
    for template, target in {**_FILES, **(_WORKER if values["kind"] == "worker" else {})}.items():
        source = resources.files(__package__).joinpath("template", _filled(template, values))
        text = source.read_text(encoding="utf-8")
        path = folder / _filled(target, values)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_filled(text, values), encoding="utf-8")
        written.append(path)
    return written


def _filled(text: str, values: dict[str, str]) -> str:
    for _ in range(2):  # what stands for a placeholder may have one
        text = re.sub(r"@([a-z]+)@", lambda match: values.get(match[1], match[0]), text)
    return text


def _problem(name: str) -> str:
    if not _NAME.fullmatch(name):
        return f"{name!r} is no name for a backend: small letters and digits, words joined by - or _, as in my-engine"
    taken = {info.name for info in available_backends()} | set(KNOWN)
    if name in taken:
        return f"there is a backend {name!r} already"
    return ""
