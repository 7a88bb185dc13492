"""What the suite found, as a table for a README and as a file for a program."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

Row = dict[str, str]


def verdict(report: pytest.TestReport) -> tuple[str, str]:
    """Return how a test ended, and why where it did not pass."""
    if hasattr(report, "wasxfail"):
        return "expected", str(report.wasxfail) or "no reason given"
    if report.outcome == "skipped":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        return "skipped", reason.removeprefix("Skipped: ")
    return report.outcome, report.nodeid.rpartition("::")[2]


def summarize(found: Iterable[tuple[Mapping[str, Any], str, str]]) -> dict[str, list[Row]]:
    """Return for each backend its rows: `{"what", "result", "tests", "detail"}`, in the order of the suite.

    A row is proven if all of its tests passed, refused if those passed which hold a backend to what it does not
    declare, failed or a known failure if one was, and not tried if all were skipped.
    """
    grouped: dict[str, dict[str, list[tuple[Mapping[str, Any], str, str]]]] = {}
    for about, outcome, why in found:
        grouped.setdefault(str(about["backend"]), {}).setdefault(str(about["proves"]), []).append((about, outcome, why))
    return {backend: [{"what": what, **_row(ends)} for what, ends in rows.items()] for backend, rows in grouped.items()}


def _row(ends: list[tuple[Mapping[str, Any], str, str]]) -> Row:
    failed = [why for _, outcome, why in ends if outcome == "failed"]
    if failed:
        return {"result": "FAILED", "tests": str(len(ends)), "detail": ", ".join(sorted(set(failed)))}
    known = [why for _, outcome, why in ends if outcome == "expected"]
    if known:
        return {"result": "known failure", "tests": str(len(ends)), "detail": "; ".join(sorted(set(known)))}
    passed = [about for about, outcome, _ in ends if outcome == "passed"]
    if not passed:
        return {"result": "not tried", "tests": "0", "detail": "; ".join(sorted({why for _, _, why in ends}))}
    refused = all(about["refuses"] for about in passed)
    return {"result": "refused" if refused else "proven", "tests": str(len(passed)), "detail": ""}


def table(rows: Iterable[Row]) -> str:
    """Return rows as a table in Markdown."""
    lines = ["| capability | result | tests |", "|---|---|---|"]
    for row in rows:
        result = f"{row['result']}: {row['detail']}" if row["detail"] else row["result"]
        lines.append(f"| {row['what']} | {result} | {row['tests']} |")
    return "\n".join(lines)


def write(path: str | Path, results: Mapping[str, list[Row]]) -> None:
    """Write results to a JSON file, beside those of other backends that it holds."""
    file = Path(path)
    held = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(dict(sorted({**held, **results}.items())), indent=1) + "\n")


def matrix(results: Mapping[str, list[Row]]) -> str:
    """Return the results of several backends side by side as Markdown: a table, and what it cannot hold below it."""
    symbols = {"proven": "proven", "refused": "refused", "known failure": "no", "FAILED": "FAILED", "not tried": "–"}
    whats = list(dict.fromkeys(row["what"] for rows in results.values() for row in rows))
    lines = ["| capability | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    notes: list[str] = []
    for what in whats:
        cells = []
        for backend, rows in results.items():
            row = next((row for row in rows if row["what"] == what), None)
            cells.append("–" if row is None else symbols[row["result"]])
            if row is not None and row["result"] in ("known failure", "FAILED"):
                notes.append(f"- **{backend}**, {what}: {row['detail']}")
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"
