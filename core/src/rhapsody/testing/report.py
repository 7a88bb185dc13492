"""What the suite found, as a table for a README and as a file for machines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

Row = dict[str, str]

_MANY = 10_000  # tasks; a suite whose author asks for fewer says so in the row that names the number


def verdict(report: pytest.TestReport) -> tuple[str, str]:
    """Return how a test ended, and why where it did not pass."""
    if hasattr(report, "wasxfail"):
        return "expected", str(report.wasxfail) or "no reason given"
    if report.outcome == "skipped":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        return "skipped", reason.removeprefix("Skipped: ")
    return report.outcome, report.nodeid.rpartition("::")[2]


def tests_of(suite: type) -> dict[str, set[str]]:
    """Return the tests of the suite for each line of the table, in the order in which they run."""
    found: dict[str, set[str]] = {}
    for kind in reversed(suite.__mro__):
        for name, test in vars(kind).items():
            about = getattr(test, "_rhapsody_conformance", None)
            if about is not None:
                found.setdefault(about["proves"], set()).add(name)
    return found


def summarize(
    found: Iterable[tuple[Mapping[str, Any], str, str]], tests: Mapping[str, set[str]]
) -> dict[str, list[Row]]:
    """Return for each backend its rows: `{"what", "result", "tests", "detail"}`, in the order of the suite.

    A row is proven if all of its tests passed; refused if those passed which hold a backend to what it does not
    declare; "in part" if some were not run; failed or a known failure if one was; and not tried if none was run.

    Args:
        found: of each test, what it is about, how it ended and why.
        tests: all there are, by line.
    """
    by_backend: dict[str, list[tuple[Mapping[str, Any], str, str]]] = {}
    for end in found:
        by_backend.setdefault(str(end[0]["backend"]), []).append(end)
    return {
        backend: [
            {"what": what, **_row([end for end in ends if end[0]["proves"] == what], names)}
            for what, names in tests.items()
        ]
        for backend, ends in by_backend.items()
    }


def _row(ends: list[tuple[Mapping[str, Any], str, str]], names: set[str]) -> Row:
    count = str(len(ends))
    failed = [why for _, outcome, why in ends if outcome == "failed"]
    if failed:
        return {"result": "FAILED", "tests": count, "detail": ", ".join(sorted(set(failed)))}
    known = [why for _, outcome, why in ends if outcome == "expected"]
    if known:
        return {"result": "known failure", "tests": count, "detail": "; ".join(sorted(set(known)))}
    passed = [about for about, outcome, _ in ends if outcome == "passed"]
    if not passed:
        reasons = sorted({why for _, _, why in ends}) or ["its tests were not run"]
        return {"result": "not tried", "tests": "0", "detail": "; ".join(reasons)}
    result = "refused" if all(about["refuses"] for about in passed) else "proven"
    left_out = len(names - {str(about["test"]) for about, _, _ in ends})
    detail = f"{left_out} of {len(names)} tests were not run" if left_out else _fewer(passed[0])
    return {"result": f"{result} in part" if left_out else result, "tests": str(len(passed)), "detail": detail}


def _fewer(about: Mapping[str, Any]) -> str:
    many = int(about.get("many", _MANY))
    return f"with {many} tasks" if many < _MANY and f"{_MANY:,}" in about["proves"] else ""


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
    shown = {"known failure": "no", "not tried": "-"}
    whats = list(dict.fromkeys(row["what"] for rows in results.values() for row in rows))
    lines = ["| capability | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    notes: list[str] = []
    for what in whats:
        cells = []
        for backend, rows in results.items():
            row = next((row for row in rows if row["what"] == what), None)
            cells.append("-" if row is None else shown.get(row["result"], row["result"]))
            if row is not None and row["detail"] and row["result"] != "not tried":
                notes.append(f"- **{backend}**, {what}: {row['detail']}")
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"
