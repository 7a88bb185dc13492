"""What the environment says: RHAPSODY_LOG_LEVEL, RHAPSODY_WORK_DIR, RHAPSODY_BACKEND, RHAPSODY_DISABLE_BACKENDS."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from .errors import SettingsError

LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def log_level() -> str | None:
    """Return RHAPSODY_LOG_LEVEL in capitals; None if it is unset or empty.

    Raises:
        SettingsError: it is none of `LOG_LEVELS`, in any case.
    """
    value = os.environ.get("RHAPSODY_LOG_LEVEL", "").strip().upper()
    if value and value not in LOG_LEVELS:
        raise SettingsError(f"RHAPSODY_LOG_LEVEL is {value!r}; it must be one of {', '.join(LOG_LEVELS)}")
    return value or None


def work_dir() -> Path:
    """Return RHAPSODY_WORK_DIR, or else the current directory, as an absolute path."""
    return Path(os.environ.get("RHAPSODY_WORK_DIR") or ".").expanduser().absolute()


def default_backend() -> str:
    """Return RHAPSODY_BACKEND: the name of the backend of a session that names none. Default: `concurrent`."""
    return os.environ.get("RHAPSODY_BACKEND", "").strip() or "concurrent"


def disabled_backends() -> frozenset[str]:
    """Return the names in RHAPSODY_DISABLE_BACKENDS, a list with commas: backends to treat as not there."""
    names = os.environ.get("RHAPSODY_DISABLE_BACKENDS", "").split(",")
    return frozenset(name.strip() for name in names if name.strip())
