"""The examples for Dragon run as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import outside

pytestmark = [pytest.mark.engine("dragon"), pytest.mark.timeout(180)]
EXAMPLES = Path(__file__).parents[3] / "examples"
EXPECTED = {
    "dragon_ensemble.py": "1000 angles on Linux: the least energy is -1.5000",
    "dragon_templates.py": "in / with green\na job of one rank",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_example_runs(name: str, tmp_path: Path) -> None:
    """An example prints what its text says, and leaves nothing."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, cwd=tmp_path, env=outside(), timeout=150
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == EXPECTED[name]
    assert done.stderr == ""
    assert not list(tmp_path.iterdir())


def test_every_example_is_run() -> None:
    """No example for Dragon is missing here."""
    assert {path.name for path in EXAMPLES.glob("dragon_*.py")} == set(EXPECTED)
