"""The commands, run as a user does, beside distributions that are installed for one test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

Environment = dict[str, str]


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """The environment of a shell without settings of RHAPSODY's; modules and metadata in `tmp_path/site` count."""
    (tmp_path / "site").mkdir()
    (tmp_path / "here").mkdir()
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RHAPSODY_")}
    return plain | {"PYTHONPATH": str(tmp_path / "site"), "COLUMNS": "100", "TMPDIR": str(tmp_path)}


def rhapsody(*arguments: str, environment: Environment, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command in an empty folder, and check that it leaves no file in it."""
    here = Path(environment["TMPDIR"]) / "here"
    done = subprocess.run(
        [sys.executable, "-m", "rhapsody", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=here,
        timeout=100,
        stdin=subprocess.DEVNULL,
    )
    assert not list(here.iterdir())
    assert "Traceback" not in done.stdout + done.stderr
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def install(environment: Environment, name: str, body: str, version: str = "1.2.3") -> None:
    """Put a distribution with one backend, `name`, where Python finds it."""
    site = Path(environment["PYTHONPATH"])
    (site / f"{name}_backend.py").write_text(textwrap.dedent(body))
    metadata = site / f"{name}_distribution-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-distribution\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text(f"[rhapsody.backends]\n{name} = {name}_backend:Backend\n")


def listed(environment: Environment, *arguments: str) -> dict[str, dict[str, Any]]:
    done = rhapsody("backends", "--json", *arguments, environment=environment, check=False)
    return {row["name"]: row for row in json.loads(done.stdout)}


HEALTHY = """
    from rhapsody.backends.concurrent import ConcurrentExecutionBackend

    class Backend(ConcurrentExecutionBackend):
        def __init__(self, name="healthy"):
            super().__init__(name=name)
"""
