"""Logging: structlog, on the standard library's `rhapsody` logger and nowhere else.

RHAPSODY_LOG_LEVEL unset: the library writes nothing of its own; an application that configures logging receives the
records like any others'. Set: records of that level and above go to stderr. The root logger is never touched.

structlog is imported with the first record that somebody wants, not before: it costs more than the rest of the core.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from . import settings

_ROOT: Final = logging.getLogger("rhapsody")
_ROOT.addHandler(logging.NullHandler())


class Logger:
    """A named logger that takes an event and its fields: `log.info("batch_submitted", backend=name, tasks=3)`."""

    def __init__(self, name: str) -> None:
        self._stdlib = logging.getLogger(name)
        self._bound: Any = None

    def debug(self, event: str, **fields: object) -> None:
        """Record what a developer follows."""
        self._emit(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Record what a user may want to know."""
        self._emit(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Record what a user should look at."""
        self._emit(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Record what went wrong; `exc_info=error` adds its traceback."""
        self._emit(logging.ERROR, event, fields)

    def _emit(self, level: int, event: str, fields: dict[str, object]) -> None:
        if not self._stdlib.isEnabledFor(level):
            return
        if self._bound is None:
            self._bound = _bind(self._stdlib)
        self._bound.log(level, event, **fields)


def get_logger(name: str = "rhapsody") -> Logger:
    """Return the logger of a module; names outside `rhapsody.` become children of it."""
    return Logger(name if name == "rhapsody" or name.startswith("rhapsody.") else f"rhapsody.{name}")


def configure() -> None:
    """Apply RHAPSODY_LOG_LEVEL. A second call replaces what the first one did.

    Raises:
        SettingsError: the variable holds no level.
    """
    level = settings.log_level()
    for handler in [handler for handler in _ROOT.handlers if isinstance(handler, _StderrHandler)]:
        _ROOT.removeHandler(handler)
    if level is None:
        _ROOT.setLevel(logging.NOTSET)
        _ROOT.propagate = True
        return
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-8s %(name)s %(message)s"))
    _ROOT.addHandler(handler)
    _ROOT.setLevel(level)
    _ROOT.propagate = False  # otherwise an application's own handler would print each record again


class _StderrHandler(logging.StreamHandler[Any]):
    """Marks the handler that `configure` added."""


def _bind(stdlib: logging.Logger) -> Any:
    import structlog

    return structlog.wrap_logger(
        stdlib,
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event"], drop_missing=True, repr_native_str=False),
        ],
    )
