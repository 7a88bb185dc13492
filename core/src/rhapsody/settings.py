"""What the environment says: RHAPSODY_LOG_LEVEL, RHAPSODY_WORK_DIR, RHAPSODY_BACKEND and others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from rhapsody.errors import SettingsError

LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

# What a journal may be beside asked for or not: tasks need it; an earlier run's results are used; and what was
# interrupted runs again.
JOURNALS: Final = ("required", "resume", "rerun")


def log_level() -> str | None:
    """Return RHAPSODY_LOG_LEVEL in capitals; None if it is unset or empty.

    Raises:
        SettingsError: it is none of `LOG_LEVELS`, in any case.
    """
    value = os.environ.get("RHAPSODY_LOG_LEVEL", "").strip().upper()
    if value and value not in LOG_LEVELS:
        raise SettingsError(f"RHAPSODY_LOG_LEVEL is {value!r}; it must be one of {', '.join(LOG_LEVELS)}")
    return value or None


def json_logs() -> bool:
    """Return whether RHAPSODY_LOG_FORMAT is `json`: records are lines of JSON where they do not go to a terminal.

    Raises:
        SettingsError: it is neither empty, `text` nor `json`.
    """
    value = os.environ.get("RHAPSODY_LOG_FORMAT", "").strip().lower()
    if value not in ("", "text", "json"):
        raise SettingsError(f"RHAPSODY_LOG_FORMAT is {value!r}; it must be text or json")
    return value == "json"


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


def disabled_observers() -> frozenset[str]:
    """Return the names in RHAPSODY_DISABLE_OBSERVERS, a list with commas: observers to leave out; `*`: all."""
    names = os.environ.get("RHAPSODY_DISABLE_OBSERVERS", "").split(",")
    return frozenset(name.strip() for name in names if name.strip())


def journal() -> bool | str:
    """Return RHAPSODY_JOURNAL: whether sessions write a journal, or one of `JOURNALS`.

    Raises:
        SettingsError: it is neither empty, 0, 1 nor one of those.
    """
    value = os.environ.get("RHAPSODY_JOURNAL", "").strip()
    if value not in ("", "0", "1", *JOURNALS):
        raise SettingsError(f"RHAPSODY_JOURNAL is {value!r}; it must be 0, 1, {' or '.join(JOURNALS)}")
    return value if value in JOURNALS else value == "1"


def resumed_session() -> Path | None:
    """Return RHAPSODY_RESUME, the folder of the session that a session without a name goes on with; None if unset."""
    value = os.environ.get("RHAPSODY_RESUME", "").strip()
    return Path(value).expanduser().absolute() if value else None


def keep_frames() -> bool:
    """Return whether RHAPSODY_KEEP_FRAMES is set: failed tasks keep the local variables of their frames."""
    return os.environ.get("RHAPSODY_KEEP_FRAMES", "").strip() not in ("", "0")
