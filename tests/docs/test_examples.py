"""The examples run as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .pages import ROOT

EXPECTED = {
    "parameter_sweep.py": "best: 0.9",
    "active_learning.py": "round 8: energy 0.0",
    "two_backends.py": "primes: [168, 303, 430, 550,",
    "dependent_analysis.py": "11 of 12 analyses: 0.497 is the least; all have ended",
    "gpu_packing.py": "46 trainings in ",
    "faults.py": "1 CANCELED, 5 DONE, 6 FAILED",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_example_runs(name: str, tmp_path: Path) -> None:
    """The example runs, prints what it should and leaves nothing."""
    settings = {key: value for key, value in os.environ.items() if not key.startswith("RHAPSODY_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / name)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=settings,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert EXPECTED[name] in done.stdout
    assert done.stderr == ""
    assert not list(tmp_path.iterdir())


def test_examples_are_listed_and_run() -> None:
    """Every example is listed, and those for the local backend are run."""
    listed = (ROOT / "examples" / "README.md").read_text()
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert {name for name in scripts if f"[{name}]({name})" not in listed} == set()
    of_engines = {name for name in scripts if name.partition("_")[0] in ("dask", "dragon", "radical")}
    assert scripts - of_engines == set(EXPECTED)
