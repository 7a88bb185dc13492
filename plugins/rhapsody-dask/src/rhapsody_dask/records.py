"""Where a worker keeps what it has begun and ended, on its machine; read after it was lost."""

from __future__ import annotations

import functools
import socket
import time
import uuid
from pathlib import Path
from typing import Final

from rhapsody.worker import kept_frames, read_progress

STALE: Final = 24 * 3600.0  # seconds after which the record of a session that did not end in good order may be removed


def remove_stale(folder: Path) -> None:
    """Remove the records of sessions that ended too abruptly to do so: old ones, whose worker's own folder is gone."""
    for path in folder.glob("rhapsody-*-worker-*"):
        worker = path.name.rpartition("-worker-")[2]
        try:
            if time.time() - path.stat().st_mtime > STALE and not (folder / f"worker-{worker}").exists():
                path.unlink()
        except OSError:  # another process removed it, or it is another user's
            continue


def progress_path(directory: str, token: str) -> Path:
    """Return where the worker whose scratch folder this is keeps its record: beside that folder, which Dask deletes."""
    folder = Path(directory)
    return folder.parent / f"rhapsody-{token}-{folder.name}"


def frames_path(directory: str, token: str) -> Path:
    """Return where that worker keeps the frames of what has ended, beside its record."""
    folder = Path(directory)
    return folder.parent / f"rhapsody-{token}-frames-{folder.name}"


@functools.cache
def machine() -> str:
    """Return the name of this machine, and an identity of its start or of its hardware."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # no Linux
        start = f"{uuid.getnode():x}"
    return f"{socket.gethostname()} {start}"


def is_ours(host: str) -> bool:
    """Whether an address is one of this machine."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.bind((host, 0))
    except OSError:
        return False
    return True


def read_record(directory: str, token: str, number: int) -> tuple[dict[int, int] | None, bytes]:
    """Return how far a worker of this machine came that is gone, and the frames that it kept of a batch.

    The first is what `read_progress` returns: None where there is no record.
    """
    return read_progress(progress_path(directory, token)), kept_frames(frames_path(directory, token), number)
