"""The file of telemetry: one line of JSON for each event and each span, and now and then one of metrics."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from opentelemetry.sdk.trace import ReadableSpan

from rhapsody.errors import SessionError
from rhapsody.observers.telemetry.events import BaseEvent, plain

_encode: Final = json.JSONEncoder(default=str).encode  # json.dumps would make an encoder for each line


class Lines:
    """Writes `UID.TIME.telemetry.jsonl`. Each line has a `section`: event, span or metric.

    Args:
        folder: made if it is not there.
        session: its uid.

    Raises:
        SessionError: the file cannot be written.
    """

    def __init__(self, folder: str | Path, session: str) -> None:
        path = Path(folder).expanduser() / f"{quote(session, safe='')}.{time.time_ns() // 1000}.telemetry.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise SessionError(f"telemetry cannot be written to {path}: {error}; choose another folder") from error

    def event(self, event: BaseEvent, ids_of: Callable[[str], tuple[str, str]]) -> None:
        """Write an event, with the span that it belongs to."""
        trace_id, span_id = ids_of(event.task_id or "")
        self._write("event", {**plain(event), "trace_id": trace_id, "span_id": span_id})

    def span(self, span: ReadableSpan) -> None:
        """Write a span."""
        start, end = span.start_time or 0, span.end_time or 0
        parent = None if span.parent is None else f"{span.parent.span_id:016x}"
        self._write(
            "span",
            {
                "name": span.name,
                "trace_id": f"{span.context.trace_id:032x}",
                "span_id": f"{span.context.span_id:016x}",
                "parent_span_id": parent,
                "start_ns": start,
                "end_ns": end,
                "start_time_s": start / 1e9,
                "end_time_s": end / 1e9,
                "duration_ms": (end - start) / 1e6,
                "status_code": span.status.status_code.name,
                "status_description": span.status.description,
                "attributes": dict(span.attributes or {}),
            },
        )

    def metrics(self, values: Mapping[str, Any]) -> None:
        """Write how the metrics stand."""
        self._write("metric", {"checkpoint_time": time.time(), **values})

    def flush(self) -> None:
        """Let others read what was written."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, section: str, fields: Mapping[str, Any]) -> None:
        self._file.write(_encode({"section": section, **fields}) + "\n")
