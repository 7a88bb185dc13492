"""Everything at once, for some seconds and each night for two minutes; `benchmarks/soak.py` runs for ten."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.mark.slow
@pytest.mark.timeout(480)
@pytest.mark.parametrize("seconds", [10, pytest.param(120, marks=pytest.mark.nightly)])
def test_soak(seconds: int) -> None:
    """Kills, cancels and raising hooks, all at once, lose no task and leave nothing behind."""
    seed = random.SystemRandom().randrange(10**6)  # a new one each time: a failure names it
    command = [sys.executable, str(SOAK), "--seconds", str(seconds), "--seed", str(seed)]
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=460, env=unmeasured)
    assert done.stderr == "", f"seed {seed}"
    figures = json.loads(done.stdout)
    assert figures["problems"] == [], f"seed {seed}"
    assert done.returncode == 0
    for happened in ("DONE", "FAILED", "CANCELED", "workers killed", "hooks raised", "batches refused"):
        assert figures.get(happened, 0) > 0, f"seed {seed}: {happened} never happened"
