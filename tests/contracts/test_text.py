"""What is written, and where."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
import rhapsody

from .source import CORE, PLUGINS, ROOT, Module, all_modules, core_modules, files

PROJECTS = [ROOT / "core", *PLUGINS]
MOST_LINES = 500


@pytest.mark.parametrize("module", all_modules(), ids=lambda module: module.name)
def test_a_module_has_at_most_500_lines(module: Module) -> None:
    assert len(module.text.splitlines()) <= MOST_LINES, "this is two modules"


# Places on somebody's machine, and notes to oneself: neither belongs into what others read.
FORBIDDEN = re.compile(
    r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+)/|/tmp/team|\b(?:TODO|FIXME|XXX)\b"  # machine paths, notes
    r"|\bissue #?\d"
)


def test_no_file_holds_a_machine_path_or_a_note_to_oneself() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if FORBIDDEN.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("module", core_modules(), ids=lambda module: module.name)
def test_an_engine_s_own_words_name_nothing_in_the_core(module: Module) -> None:
    names = {node.id for node in ast.walk(module.tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)}
    names |= {node.arg for node in ast.walk(module.tree) if isinstance(node, ast.arg)}
    engines = re.compile(r"(?:^|_)(?:pilot|cluster|dask|dragon|radical)(?:_|$)", re.IGNORECASE)
    assert not {name for name in names if engines.search(name)}


def test_a_lint_exemption_carries_its_reason_on_the_same_line() -> None:
    bare = re.compile(r"#\s*noqa(?:: [A-Z0-9, ]+)?\s*$")
    found = [
        f"{module.name}:{number}"
        for module in all_modules()
        for number, line in enumerate(module.text.splitlines(), 1)
        if bare.search(line)
    ]
    assert not found


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project.name)
def test_distributions_have_one_version_and_belong_together(project: Path) -> None:
    declared = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    assert declared["version"] == rhapsody.__version__
    assert declared["license"] == "MIT"
    assert declared["requires-python"] == ">=3.11"
    if project.name != "core":
        assert f"rhapsody-core=={rhapsody.__version__}" in declared["dependencies"]


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project.name)
def test_a_distribution_carries_its_licence_its_types_and_a_readme(project: Path) -> None:
    package = next((project / "src").iterdir())
    assert (project / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert (package / "py.typed").exists()
    assert len((project / "README.md").read_text().splitlines()) > 3


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project.name)
def test_every_entry_point_names_a_class_that_is_there(project: Path) -> None:
    declared = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    for target in declared["entry-points"]["rhapsody.backends"].values():
        module, _, name = target.partition(":")
        path = (project / "src").joinpath(*module.split(".")).with_suffix(".py")
        tree = ast.parse(path.read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def test_every_first_party_backend_is_known_before_it_is_installed() -> None:
    from rhapsody.discovery import KNOWN

    for project in PLUGINS:
        declared = tomllib.loads((project / "pyproject.toml").read_text())["project"]
        for name, target in declared["entry-points"]["rhapsody.backends"].items():
            assert KNOWN[name] == (declared["name"], target.partition(":")[2])


def test_the_constraints_are_names_and_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert not [line for line in lines if not re.fullmatch(r"#.*|[a-z0-9._-]+==[a-z0-9.]+", line)]


def test_the_core_is_where_the_contracts_look_for_it() -> None:
    assert Path(rhapsody.__file__).is_relative_to(CORE)
