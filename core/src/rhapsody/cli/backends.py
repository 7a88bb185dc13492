"""`rhapsody backends`: what is installed, what is broken, and what could be installed."""

from __future__ import annotations

from typing import Any, Final

import attrs
import click
from rich.markup import escape
from rich.table import Table

from rhapsody import settings
from rhapsody.cli._common import console, print_json
from rhapsody.errors import BackendError
from rhapsody.seam.discovery import BackendInfo, available_backends, available_observers, load_backend

_STYLES: Final = {"installed": "green", "ready": "green", "broken": "red", "missing": "dim"}


@click.command()
@click.option("--check", is_flag=True, help="Import each backend too, and exit with status 1 if one is broken.")
@click.option("--observers", is_flag=True, help="List the observers that are installed instead; imports each.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(check: bool, observers: bool, as_json: bool) -> None:
    """List the backends that are installed, and those that could be.

    Reads the metadata of what is installed and imports nothing, unless --check is given. The backend marked with *
    is the one of a session that names none.
    """
    if observers:
        _list_observers(check, as_json)
        return
    rows = [describe(info, check) for info in _with_ambiguity(available_backends())]
    if as_json:
        print_json(rows)
    else:
        _print(rows)
    if check and any(row["status"] == "broken" for row in rows):
        raise SystemExit(1)


def _list_observers(check: bool, as_json: bool) -> None:
    found = available_observers()
    if as_json:
        print_json([attrs.asdict(info) for info in found])
    else:
        table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
        for header in ("Observer", "Status", "From", "Class or problem"):
            table.add_column(header, overflow="fold")
        for info in found:
            status = "broken" if info.problem else "ready"
            origin = " ".join(filter(None, (info.distribution, info.version)))
            note = info.problem or info.target
            table.add_row(escape(info.name), f"[{_STYLES[status]}]{status}[/]", escape(origin), escape(note))
        console().print(table if found else "no observers are installed, or all are disabled")
    if check and any(info.problem for info in found):
        raise SystemExit(1)


def describe(info: BackendInfo, check: bool) -> dict[str, Any]:
    """Describe a backend: its `status` is installed or missing, or with `check` ready, broken or missing."""
    status, note = ("installed" if info.installed else "missing"), info.remedy
    if check and info.installed:
        try:
            load_backend(info.name)
            status = "ready"
        except BackendError as error:
            status, note = "broken", str(error)
    return {
        "name": info.name,
        "status": status,
        "distribution": info.distribution,
        "version": info.version,
        "target": info.target,
        "default": info.name == settings.default_backend(),
        "note": note,
    }


def _with_ambiguity(found: list[BackendInfo]) -> list[BackendInfo]:
    """Name each of several distributions that offer one name as it must be asked for."""
    names = [info.name for info in found]
    return [
        BackendInfo(
            name=f"{info.distribution}:{info.name}",
            distribution=info.distribution,
            version=info.version,
            target=info.target,
            remedy=f"several distributions offer {info.name!r}: ask for this one by the whole name",
        )
        if names.count(info.name) > 1 and info.distribution
        else info
        for info in found
    ]


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for header in ("Backend", "Status", "From", "Class or remedy"):
        table.add_column(header, overflow="fold")
    broken = [row for row in rows if row["status"] == "broken"]
    for row in rows:
        origin = f"{row['distribution']} {row['version']}" if row["version"] else row["distribution"] or ""
        class_name = str(row["target"]).partition(":")[2]
        table.add_row(
            escape(row["name"] + (" *" if row["default"] else "")),
            f"[{_STYLES[row['status']]}]{row['status']}[/]",
            escape(origin),
            escape(class_name if row in broken else row["note"] or class_name),
        )
    out = console()
    out.print(table)
    for row in broken:
        out.print(f"\n[red]{escape(row['name'])}[/]: {escape(row['note'])}", soft_wrap=True)
