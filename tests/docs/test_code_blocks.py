"""What the documentation shows is run."""

from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from .pages import ROOT, Block, blocks, name_of, needs, pages

RUNNER = Path(__file__).with_name("notebook.py")
WITH_PYTHON = [page for page in pages() if any(block.language == "python" for block in blocks(page))]


def _is_run(page: Path) -> bool:
    """Whether there is something to run; of an engine that takes half a minute to start, in the how-to page alone."""
    shown_twice = page.name == "README.md" and {"dragon", "radical"} & set(needs(page))
    return not shown_twice and any(block.language == "python" and block.reason is None for block in blocks(page))


TO_RUN = [page for page in WITH_PYTHON if _is_run(page)]
COMMANDS = [
    (block, line.removeprefix("$ "))
    for page in pages()
    for block in blocks(page)
    if block.language == "console" and block.reason is None
    for line in block.text.splitlines()
    if line.startswith("$ rhapsody ")
]


def _marks(page: Path) -> list[pytest.MarkDecorator]:
    engines = needs(page)
    marks = [pytest.mark.engine(engine) for engine in engines]
    return [*marks, pytest.mark.slow, pytest.mark.timeout(300)] if engines else marks


def _environment(folder: Path) -> dict[str, str]:
    settings = {name: value for name, value in os.environ.items() if not name.startswith("RHAPSODY_")}
    return settings | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder)}


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page), marks=_marks(page)) for page in TO_RUN])
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    """Every block of Python in the page runs."""
    run = [vars(block) for block in blocks(page) if block.language == "python" and block.reason is None]
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", str(RUNNER)],
        input=json.dumps(run),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=_environment(tmp_path),
        timeout=240,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in WITH_PYTHON])
def test_python_blocks_compile(page: Path) -> None:
    """Every block of Python compiles, and one that is not run says why."""
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, f"{block.page}:{block.line}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        assert block.reason != "", f"{block.page}:{block.line} gives no reason for not being run"


@pytest.mark.parametrize(
    ("block", "command"), [pytest.param(*case, id=f"{case[0].page}: {case[1]}") for case in COMMANDS]
)
def test_shown_commands_succeed(block: Block, command: str, tmp_path: Path) -> None:
    """Every command that the documentation shows succeeds."""
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=_environment(tmp_path),
        timeout=100,
    )
    assert done.returncode == 0, f"{block.page}:{block.line}\n{done.stdout}\n{done.stderr}"
    assert done.stdout.strip()
    assert not list(tmp_path.glob("rhapsody.*")), "a command leaves files in the current directory"


def test_documentation_is_found() -> None:
    """The pages and commands that these tests are for are found."""
    names = {name_of(page) for page in WITH_PYTHON}
    assert {"README.md", "docs/tutorial/first-ensemble.md", "docs/how-to/executables.md"} <= names
    assert len(COMMANDS) >= 5
    assert (ROOT / "docs" / "conf.py").exists()
