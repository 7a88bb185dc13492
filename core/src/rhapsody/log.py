"""Logging: structlog, on the standard library's `rhapsody` logger and nowhere else.

RHAPSODY_LOG_LEVEL unset: the library writes nothing of its own; an application that configures logging receives the
records like any others'. Set: records of that level and above go to stderr. The root logger is never touched.

structlog is imported with the first record that somebody wants, not before: it costs more than the rest of the core.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Final

from rhapsody import settings

_ROOT: Final = logging.getLogger("rhapsody")
_ROOT.addHandler(logging.NullHandler())
_context: Final[ContextVar[Mapping[str, object]]] = ContextVar("rhapsody_log", default=MappingProxyType({}))
_json = False  # whether records are lines of JSON: the handler of `configure` alone receives those


class Logger:
    """A named logger that takes an event and its fields: `log.info("batch_submitted", backend=name, tasks=3)`.

    Args:
        name: of the standard library's logger.
        fields: of each record.
    """

    def __init__(self, name: str, **fields: object) -> None:
        self._fields = fields
        self._stdlib = logging.getLogger(name)
        self._bound: Any = None

    def debug(self, event: str, **fields: object) -> None:
        """Record what a developer follows."""
        self._emit(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Record what a user may want to know."""
        self._emit(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Record what a user should check."""
        self._emit(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Record what went wrong; `exc_info=error` adds its traceback."""
        self._emit(logging.ERROR, event, fields)

    def _emit(self, level: int, event: str, fields: dict[str, object]) -> None:
        if not self._stdlib.isEnabledFor(level):
            return
        if self._bound is None:
            self._bound = _bind(self._stdlib)
        self._bound.log(level, event, **{**_context.get(), **self._fields, **fields})


def get_logger(name: str = "rhapsody", **fields: object) -> Logger:
    """Return the logger of a module; names outside `rhapsody.` become children of it. Each record has the fields."""
    return Logger(name if name == "rhapsody" or name.startswith("rhapsody.") else f"rhapsody.{name}", **fields)


def bind(**fields: object) -> None:
    """Have each record from here on carry fields, in this context: that of an asyncio task and what it starts."""
    _context.set({**_context.get(), **fields})


def configure() -> None:
    """Apply RHAPSODY_LOG_LEVEL and RHAPSODY_LOG_FORMAT. A second call replaces what the first one did.

    Raises:
        SettingsError: one of them holds something else.
    """
    global _json
    level, asked = settings.log_level(), settings.json_logs()
    _json = asked and level is not None and not sys.stderr.isatty()
    for handler in [handler for handler in _ROOT.handlers if isinstance(handler, _StderrHandler)]:
        _ROOT.removeHandler(handler)
    if level is None:
        _ROOT.setLevel(logging.NOTSET)
        _ROOT.propagate = True
        return
    handler = _StderrHandler()
    form = "%(message)s" if _json else "%(asctime)s %(levelname)-8s %(name)s %(message)s"
    handler.setFormatter(logging.Formatter(form))
    _ROOT.addHandler(handler)
    _ROOT.setLevel(level)
    _ROOT.propagate = False  # otherwise an application's own handler would print each record again


class _StderrHandler(logging.StreamHandler[Any]):
    """Marks the handler that `configure` added."""


def _bind(stdlib: logging.Logger) -> Any:
    import structlog

    text = structlog.processors.KeyValueRenderer(key_order=["event"], drop_missing=True, repr_native_str=False)
    line = structlog.processors.JSONRenderer(default=str)
    add = (
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.add_log_level_number,
        structlog.stdlib.add_logger_name,
    )

    def render(logger: Any, name: str, fields: Any) -> Any:
        if not _json:
            return text(logger, name, fields)
        for processor in add:
            fields = processor(logger, name, fields)
        fields["level"] = logging.getLevelName(fields.pop("level_number"))
        return line(logger, name, fields)

    return structlog.wrap_logger(
        stdlib,
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[
            structlog.processors.format_exc_info,
            render,
        ],
    )
