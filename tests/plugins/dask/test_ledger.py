"""The file in which a worker notes what it is about to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rhapsody_dask.on_worker import REMEMBERED, Ledger, digest, ledger_path, read_ledger

pytestmark = pytest.mark.engine("dask")

WRITER = """
import os, signal, sys
from pathlib import Path
from rhapsody_dask.on_worker import Ledger, digest
ledger = Ledger(Path(sys.argv[1]))
ledger.write(ledger.open(41), 41, digest("first"))
ledger.write(ledger.open(42), 42, digest("second"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_noted_survives_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ended = subprocess.run([sys.executable, "-c", WRITER, str(path)], timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert read_ledger(str(path)) == {41: digest("first"), 42: digest("second")}


def test_the_oldest_unit_makes_room_for_a_new_one(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    for number in range(1, REMEMBERED + 2):
        ledger.open(number)
    noted = read_ledger(str(tmp_path / "ledger"))
    assert noted is not None
    assert 1 not in noted
    assert len(noted) == REMEMBERED


def test_a_closed_ledger_leaves_no_file(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger").close()
    assert list(tmp_path.iterdir()) == []
    assert read_ledger(str(tmp_path / "ledger")) is None


def test_a_ledger_lies_beside_the_folder_that_dask_deletes(tmp_path: Path) -> None:
    assert ledger_path(str(tmp_path / "worker-abc"), "token") == tmp_path / "rhapsody-token-worker-abc"


def test_old_ledgers_whose_worker_is_gone_are_swept_away(tmp_path: Path) -> None:
    old, used, young = (tmp_path / f"rhapsody-token-worker-{name}" for name in ("old", "used", "young"))
    for path in (old, used, young):
        path.touch()
    for path in (old, used):
        os.utime(path, (0, 0))
    (tmp_path / "worker-used").mkdir()
    Ledger(tmp_path / "rhapsody-token-worker-new")
    assert not old.exists()
    assert used.exists()
    assert young.exists()
