"""Names the place where this process runs."""

from __future__ import annotations

import functools
import os
import socket


def where() -> str:
    """Return the host and process that this runs on, as `host:pid`."""
    return _where(os.getpid())  # asked each time: the process may have been forked


@functools.lru_cache(maxsize=1)
def _where(pid: int) -> str:
    return f"{socket.gethostname()}:{pid}"
