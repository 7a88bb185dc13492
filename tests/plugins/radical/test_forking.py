"""Python 3.14 with fork as its start method, in RADICAL-Pilot's processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rhapsody_radical import pilot


def test_fork_is_set_beside_own_sitecustomize(tmp_path: Path) -> None:
    """Python starts with fork as its start method, and the user's own sitecustomize still runs."""
    (tmp_path / "sitecustomize.py").write_text("print('mine')")
    said = subprocess.run(
        [sys.executable, "-c", "import multiprocessing; print(multiprocessing.get_start_method(allow_none=True))"],
        env={**os.environ, "PYTHONPATH": f"{pilot._FORKING}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split() == ["mine", "fork"]
    assert said.stderr == ""
