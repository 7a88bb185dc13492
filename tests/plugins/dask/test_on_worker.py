"""The record in which a Dask worker notes what it is about to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rhapsody_dask.records import is_ours, progress_path, remove_stale

pytestmark = pytest.mark.engine("dask")


def test_record_lies_beside_the_folder(tmp_path: Path) -> None:
    """Dask deletes a worker's own folder with the worker."""
    assert progress_path(str(tmp_path / "worker-abc"), "token") == tmp_path / "rhapsody-token-worker-abc"


def test_stale_records_are_removed(tmp_path: Path) -> None:
    """An old record goes unless its worker's folder is there; a young one stays."""
    old, used, young = (tmp_path / f"rhapsody-token-worker-{name}" for name in ("old", "used", "young"))
    for path in (old, used, young):
        path.touch()
    for path in (old, used):
        os.utime(path, (0, 0))
    (tmp_path / "worker-used").mkdir()
    remove_stale(tmp_path)
    assert not old.exists()
    assert used.exists()
    assert young.exists()


def test_addresses_of_this_machine() -> None:
    """An address is this machine's if a socket can have it."""
    assert is_ours("127.0.0.1")
    assert not is_ours("198.51.100.7")  # of no machine: kept for documentation
