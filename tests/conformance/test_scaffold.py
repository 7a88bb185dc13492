"""`rhapsody new-backend` writes a distribution that installs, is found, works and passes the suite, untouched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rhapsody.cli import group
from rhapsody.cli.scaffold import names

CORE = Path(__file__).resolve().parents[2] / "core"
FILES = {
    ".github/workflows/test.yml",
    "README.md",
    "pyproject.toml",
    "src/rhapsody_my_engine/__init__.py",
    "src/rhapsody_my_engine/backend.py",
    "src/rhapsody_my_engine/worker.py",
    "tests/test_conformance.py",
}


def new_backend(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(group, ["new-backend", *arguments])
    return result.exit_code, result.output


def run(*command: str | Path, cwd: Path | None = None, timeout: float = 500) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RHAPSODY_", "PYTHON"))}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_it_writes_a_whole_distribution_and_says_what_to_do_next(tmp_path: Path) -> None:
    code, output = new_backend("my-engine", "--dir", str(tmp_path / "new"))
    assert code == 0, output
    written = {str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert written == FILES
    assert "rhapsody doctor my-engine" in output
    for path in FILES:
        assert "@" not in (tmp_path / "new" / path).read_text().replace("@hookimpl", "").replace("@pytest", "").replace(
            "actions/checkout@v4", ""
        ).replace("actions/setup-python@v5", ""), f"{path} has a placeholder left"


def test_names_are_made_for_every_place() -> None:
    made = names("my_big-engine2")
    assert made["distribution"] == "rhapsody-my-big-engine2"
    assert made["package"] == "rhapsody_my_big_engine2"
    assert made["class"] == "MyBigEngine2ExecutionBackend"


@pytest.mark.parametrize("name", ["My", "2fast", "a b", "-x", "a--b", "../x", ""])
def test_a_name_that_cannot_be_one_is_refused(name: str, tmp_path: Path) -> None:
    code, output = new_backend("--dir", str(tmp_path / "new"), "--", name)
    assert code == 2
    assert "no name for a backend" in output
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["concurrent", "dask", "radical_pilot"])
def test_a_name_that_is_taken_is_refused(name: str, tmp_path: Path) -> None:
    code, output = new_backend(name, "--dir", str(tmp_path / "new"))
    assert code == 2
    assert "there is a backend" in output


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    code, output = new_backend("my-engine", "--dir", str(tmp_path))
    assert code == 2
    assert "is not an empty folder" in output
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_it_is_green_untouched_when_installed_from_wheels_in_a_new_environment(tmp_path: Path) -> None:
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert uv is not None, "uv is not there; `make install` installs it"
    project, wheels, venv = tmp_path / "new", tmp_path / "wheels", tmp_path / "venv"
    code, output = new_backend("my-engine", "--dir", str(project))
    assert code == 0, output
    for source in (CORE, project):
        run(uv, "build", "--quiet", "--wheel", "--out-dir", wheels, source)
    run(uv, "venv", "--quiet", "--python", sys.executable, venv)
    core, mine = (next(wheels.glob(f"{name}-*.whl")) for name in ("rhapsody_core", "rhapsody_my_engine"))
    install = [uv, "pip", "install", "--quiet", "--python", venv / "bin" / "python"]
    run(*install, f"rhapsody-core[testing] @ {core.as_uri()}", mine)
    rhapsody = venv / "bin" / "rhapsody"
    rows = {row["name"]: row for row in json.loads(run(rhapsody, "backends", "--check", "--json", cwd=tmp_path))}
    assert rows["my-engine"]["status"] == "ready"
    assert rows["my-engine"]["distribution"] == "rhapsody-my-engine"
    run(rhapsody, "doctor", "my-engine", cwd=tmp_path)
    told = run(venv / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=project)
    assert "RHAPSODY conformance of my-engine" in told
    assert "| stops a running function | proven |" in told
    assert "FAILED" not in told
    assert "known failure" not in told
