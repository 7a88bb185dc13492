"""Two minutes of everything at once; `benchmarks/soak.py` has the ten minutes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[3] / "benchmarks" / "soak.py"


@pytest.mark.slow
@pytest.mark.timeout(480)
def test_two_minutes_of_kills_cancels_and_raising_hooks_loses_nothing_and_leaves_nothing() -> None:
    seed = random.SystemRandom().randrange(10**6)  # a new one each time: a failure names it
    command = [sys.executable, str(SOAK), "--seconds", "120", "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=460)
    assert done.stderr == "", f"seed {seed}"
    figures = json.loads(done.stdout)
    assert figures["problems"] == [], f"seed {seed}"
    assert done.returncode == 0
    for happened in ("DONE", "FAILED", "CANCELED", "workers killed", "hooks raised", "batches refused"):
        assert figures.get(happened, 0) > 0, f"seed {seed}: {happened} never happened"
