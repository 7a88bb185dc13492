"""`rhapsody new-backend` writes a whole distribution; tests/wheels installs it and runs its tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from rhapsody.cli import group
from rhapsody.cli.scaffold import KINDS, names

FILES = {
    ".github/workflows/test.yml",
    "README.md",
    "pyproject.toml",
    "src/rhapsody_my_engine/__init__.py",
    "src/rhapsody_my_engine/backend.py",
    "src/rhapsody_my_engine/bench.py",
    "tests/test_conformance.py",
}


def new_backend(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(group, ["new-backend", *arguments])
    return result.exit_code, result.output


@pytest.mark.parametrize("kind", KINDS)
def test_writes_a_whole_distribution(tmp_path: Path, kind: str) -> None:
    """`new-backend` writes every file, without placeholders, and names the next command; the backend is short."""
    code, output = new_backend("my-engine", "--kind", kind, "--dir", str(tmp_path / "new"))
    assert code == 0, output
    written = {str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*") if path.is_file()}
    own = {"src/rhapsody_my_engine/worker.py"} if kind == "worker" else set()
    assert written == FILES | own
    assert "rhapsody doctor my-engine" in output
    backend = (tmp_path / "new" / "src" / "rhapsody_my_engine" / "backend.py").read_text()
    assert len(backend.splitlines()) < 60
    for path in written:
        assert "@" not in (tmp_path / "new" / path).read_text().replace("@hookimpl", "").replace("@pytest", "").replace(
            "@contextmanager", ""
        ).replace("actions/checkout@v4", "").replace("actions/setup-python@v5", ""), f"{path} has a placeholder left"


def test_names_for_every_place() -> None:
    """Distribution, package and class names are derived from the backend's name."""
    made = names("my_big-engine2")
    assert made["distribution"] == "rhapsody-my-big-engine2"
    assert made["package"] == "rhapsody_my_big_engine2"
    assert made["class"] == "MyBigEngine2ExecutionBackend"


@pytest.mark.parametrize("name", ["My", "2fast", "a b", "-x", "a--b", "../x", ""])
def test_impossible_name_is_refused(name: str, tmp_path: Path) -> None:
    """A name that cannot be a package's is a usage error and writes nothing."""
    code, output = new_backend("--dir", str(tmp_path / "new"), "--", name)
    assert code == 2
    assert "no name for a backend" in output
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["concurrent", "dask", "radical_pilot"])
def test_taken_name_is_refused(name: str, tmp_path: Path) -> None:
    """A name that a known backend or alias has is a usage error."""
    code, output = new_backend(name, "--dir", str(tmp_path / "new"))
    assert code == 2
    assert "there is a backend" in output


def test_filled_folder_is_left_alone(tmp_path: Path) -> None:
    """A folder that is not empty is refused and stays as it is."""
    (tmp_path / "thesis.tex").write_text("precious")
    code, output = new_backend("my-engine", "--dir", str(tmp_path))
    assert code == 2
    assert "is not an empty folder" in output
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
