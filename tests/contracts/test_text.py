"""What is written, and where."""

from __future__ import annotations

import ast
import re
import statistics
import tomllib
from pathlib import Path

import pytest
import rhapsody

from .source import CORE, PLUGINS, ROOT, Module, all_modules, core_modules, files

PROJECTS = [ROOT / "core", *PLUGINS]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MOST_LINES = 350


@pytest.mark.parametrize("module", all_modules(), ids=lambda module: module.name)
def test_module_length(module: Module) -> None:
    """No module is longer than the limit."""
    assert len(module.text.splitlines()) <= MOST_LINES, "this is two modules"


def test_length_of_test_files() -> None:
    """No file of the tests, benchmarks and examples is longer than the limit: it is split by behaviour."""
    paths = [path for path in files() if path.suffix == ".py"]
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in paths}
    assert not {str(path): lines for path, lines in lengths.items() if lines > MOST_LINES}


def _tests_of(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    nodes = ast.walk(ast.parse(path.read_text()))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [function for function in functions if function.name.startswith("test_")]


def test_names_of_tests() -> None:
    """Half of the tests' names are shorter than forty characters; what a test states is in its docstring."""
    names = [test.name for path in TESTS for test in _tests_of(path)]
    assert statistics.median(map(len, names)) < 40


def test_tests_state_their_behaviour() -> None:
    """The first line of a test's docstring is a sentence that states one behaviour."""
    first_lines = {
        f"{path.relative_to(ROOT)}::{test.name}": (ast.get_docstring(test) or "").partition("\n")[0]
        for path in TESTS
        for test in _tests_of(path)
    }
    assert not [name for name, line in first_lines.items() if not line.endswith(".")]


# Places on somebody's machine, and notes to oneself: neither belongs into what others read.
FORBIDDEN = re.compile(
    r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+)/|/tmp/team|\b(?:TODO|FIXME|XXX)\b"  # machine paths, notes
    r"|\bissue #?\d"
    r"|^(?:<{7}|>{7}) "  # a merge that was not finished
)


def test_no_machine_paths_or_notes() -> None:
    """No file of the project holds a path of one machine or a note to oneself."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if FORBIDDEN.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("module", core_modules(), ids=lambda module: module.name)
def test_core_has_no_engine_words(module: Module) -> None:
    """No name in the core's code is a term of one engine."""
    names = {node.id for node in ast.walk(module.tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)}
    names |= {node.arg for node in ast.walk(module.tree) if isinstance(node, ast.arg)}
    engines = re.compile(r"(?:^|_)(?:pilot|cluster|dask|dragon|radical)(?:_|$)", re.IGNORECASE)
    assert not {name for name in names if engines.search(name)}


def test_lint_exemptions_carry_reasons() -> None:
    """A lint exemption carries its reason on the same line."""
    bare = re.compile(r"#\s*noqa(?:: [A-Z0-9, ]+)?\s*$")
    found = [
        f"{module.name}:{number}"
        for module in all_modules()
        for number, line in enumerate(module.text.splitlines(), 1)
        if bare.search(line)
    ]
    assert not found


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project.name)
def test_distributions_share_a_version(project: Path) -> None:
    """All distributions have one version, licence and Python, and require each other."""
    declared = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    assert declared["version"] == rhapsody.__version__
    assert declared["license"] == "MIT"
    assert declared["requires-python"] == ">=3.11"
    if project.name != "core":
        major, minor = map(int, rhapsody.__version__.split(".")[:2])
        assert f"rhapsody-core>={major}.{minor},<{major}.{minor + 1}" in declared["dependencies"]


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project.name)
def test_distributions_are_complete(project: Path) -> None:
    """Each distribution carries its licence, its type marker and a README."""
    package = next((project / "src").iterdir())
    assert (project / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert (package / "py.typed").exists()
    assert len((project / "README.md").read_text().splitlines()) > 3


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project.name)
def test_entry_points_exist(project: Path) -> None:
    """Every entry point names a class that exists, and that takes `max_in_flight` as all backends do."""
    declared = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    for target in declared["entry-points"]["rhapsody.backends"].values():
        module, _, name = target.partition(":")
        path = (project / "src").joinpath(*module.split(".")).with_suffix(".py")
        tree = ast.parse(path.read_text())
        imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
        classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        assert name in {*classes, *imported}
        assert name in imported or "max_in_flight: int | None" in ast.unparse(classes[name])


def test_first_party_backends_are_known() -> None:
    """Every backend of a plugin here is known before it is installed."""
    from rhapsody.seam.discovery import KNOWN

    for project in PLUGINS:
        declared = tomllib.loads((project / "pyproject.toml").read_text())["project"]
        for name, target in declared["entry-points"]["rhapsody.backends"].items():
            assert KNOWN[name] == (declared["name"], target.partition(":")[2])


@pytest.mark.parametrize("project", PLUGINS, ids=lambda project: project.name)
def test_plugins_declare_their_interface(project: Path) -> None:
    """Each plugin names the version of the interface that it is written for, as a number."""
    text = "".join(path.read_text() for path in (project / "src").rglob("*.py"))
    assert re.search(r"^    interface_version = \d+$", text, re.MULTILINE)


def test_constraints_are_plain() -> None:
    """The constraints hold names and versions only."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert not [line for line in lines if not re.fullmatch(r"#.*|[a-z0-9._-]+==[a-z0-9.]+", line)]


def test_core_under_test_is_this_one() -> None:
    """The imported core is the one whose source the contracts read."""
    assert Path(rhapsody.__file__).is_relative_to(CORE)


@pytest.mark.parametrize("module", all_modules(), ids=lambda module: module.name)
def test_kind_is_asked_by_name(module: Module) -> None:
    """Only the model derives a task's kind from its fields; all others compare `task.kind`."""
    if not module.name.startswith("rhapsody.model."):
        pattern = r"^(?!\s*assert ).*\btask\.(?:function|executable) is (?:not )?None"
        assert not re.findall(pattern, module.text, re.MULTILINE)
