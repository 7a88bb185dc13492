"""What `rhapsody new-backend` writes installs, is found, works and passes the suite, untouched."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rhapsody.cli import group
from rhapsody.cli.scaffold import KINDS

from .conftest import MARKS, UV, run

pytestmark = [*MARKS, pytest.mark.slow]


@pytest.mark.timeout(700)
@pytest.mark.parametrize("kind", KINDS)
def test_green_when_installed_from_wheels(wheels: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """The scaffold, installed from wheels into a new environment, passes doctor and the suite."""
    project, venv = tmp_path / "new", tmp_path / "venv"
    written = CliRunner().invoke(group, ["new-backend", "my-engine", "--kind", kind, "--dir", str(project)])
    assert written.exit_code == 0, written.output
    run(UV, "build", "--quiet", "--wheel", "--out-dir", tmp_path, project)
    (mine,) = tmp_path.glob("rhapsody_my_engine-*.whl")
    run(UV, "venv", "--quiet", "--python", sys.executable, venv)
    core = f"rhapsody-core[testing] @ {wheels['rhapsody_core'].as_uri()}"
    run(UV, "pip", "install", "--quiet", "--python", venv / "bin" / "python", core, mine)
    rhapsody = venv / "bin" / "rhapsody"
    rows = {row["name"]: row for row in json.loads(run(rhapsody, "backends", "--check", "--json", cwd=tmp_path))}
    assert rows["my-engine"]["status"] == "ready"
    assert rows["my-engine"]["distribution"] == "rhapsody-my-engine"
    run(rhapsody, "doctor", "my-engine", cwd=tmp_path)
    run(rhapsody, "bench", "--backend", "my-engine", "--tasks", "50", "--rounds", "1", "--brief", cwd=tmp_path)
    report = run(venv / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=project)
    assert "RHAPSODY conformance of my-engine" in report
    assert ("| stops a running function | proven |" in report) is (kind != "future")
    assert "FAILED" not in report
    assert "known failure" not in report
