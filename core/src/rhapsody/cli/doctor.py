"""`rhapsody doctor`: does each installed backend run a function and an executable, and if not, what would mend it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import click
from importlib_metadata import PackageNotFoundError, distribution
from rich.console import Console
from rich.markup import escape

from rhapsody import __version__, settings
from rhapsody.cli._common import console, option_argument, print_json, read_options, scratch
from rhapsody.compat import BOTH_INSTALLED
from rhapsody.errors import SettingsError
from rhapsody.seam.allocation import current_allocation
from rhapsody.seam.discovery import KNOWN, available_backends, available_observers

_GRACE: Final = (10.0, 10.0)  # seconds that an examination has to clean up after the first SIGINT, and the second
_TAIL: Final = 600  # characters of what a process said before it died

_HEADER: Final = f"{'Backend':<16}{'load':>9}{'start':>9}{'function':>10}{'program':>9}{'shutdown':>10}"
_WIDTHS: Final = {"load": 9, "start": 9, "function": 10, "executable": 9, "shutdown": 10}


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@option_argument()
@click.option("--timeout", default=180.0, show_default=True, help="Seconds for each backend.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(names: tuple[str, ...], options: tuple[str, ...], timeout: float, as_json: bool) -> None:
    """Run a function and an executable on each installed backend, and say what is wrong.

    Each backend is started in a process of its own, runs one function and one executable, and is shut down. Without a
    NAME every installed backend is examined once. What takes more than five seconds is shown, with what it waits for.
    Exit status 1 if something is wrong.
    """
    if options and len(names) != 1:
        raise click.UsageError("--option is for one backend: name it, as in `rhapsody doctor dask -o workers=2`")
    read_options(options)  # what is no option is refused before anything starts
    out = console()
    environment = list(environment_problems())
    allocation = current_allocation()
    rows: list[dict[str, Any]] = []
    with scratch() as folder:
        if not as_json:
            if allocation is not None:
                out.print(f"{escape(str(allocation))}\n", soft_wrap=True)
            out.print(f"[bold]{_HEADER}[/]", soft_wrap=True)
        for name in names or _each_once():
            row = examine(name, folder, timeout, options, None if as_json else out)
            rows.append(row)
            if not as_json:
                _print_row(out, row)
    wrong = [row for row in rows if row["problem"]]
    if as_json:
        where = None if allocation is None else attrs.asdict(allocation)
        print_json({"backends": rows, "environment": environment, "allocation": where})
    else:
        _print_verdict(out, wrong, environment, len(rows))
    if wrong or environment:
        raise SystemExit(1)


def _each_once() -> list[str]:
    """Return a name for each installed backend, the first of its aliases."""
    names: dict[str | None, str] = {}
    for info in available_backends():
        if info.installed:
            names.setdefault(info.target, info.name)
    return list(names.values())


def environment_problems() -> Iterator[dict[str, str]]:
    """Find what is wrong with the settings and with the versions of what is installed."""
    try:
        settings.log_level()
    except SettingsError as error:
        yield {"problem": str(error), "remedy": "unset RHAPSODY_LOG_LEVEL, or correct it"}
    with contextlib.suppress(PackageNotFoundError):
        distribution("rhapsody-py")
        problem, _, remedy = BOTH_INSTALLED.partition(": ")
        yield {"problem": problem, "remedy": remedy}
    found = available_backends()
    default = settings.default_backend()
    if not any(info.installed and info.name == default.rpartition(":")[2] for info in found):
        yield {
            "problem": f"RHAPSODY_BACKEND is {default!r}, and no such backend is installed",
            "remedy": "choose one of `rhapsody backends`, or install it",
        }
    for observer in available_observers():
        if observer.problem:
            yield {
                "problem": f"the observer {observer.name!r} of {observer.distribution} is broken: {observer.problem}",
                "remedy": f"upgrade or uninstall it, or set RHAPSODY_DISABLE_OBSERVERS={observer.name}",
            }
    folder = settings.work_dir()
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        yield {
            "problem": f"sessions could not write their files: {parent} is not a folder that you may write to",
            "remedy": "set RHAPSODY_WORK_DIR to one",
        }
    ours = {package for package, _ in KNOWN.values()}
    other = {info.distribution: info.version for info in found if info.installed and info.distribution in ours}
    for package, version in other.items():
        if version != __version__:
            yield {
                "problem": f"{package} {version} is installed beside rhapsody-core {__version__}",
                "remedy": f"pip install {package}=={__version__}",
            }


def examine(
    name: str, folder: str, timeout: float, options: Sequence[str] = (), out: Console | None = None
) -> dict[str, Any]:
    """Examine one backend in a process of its own.

    Args:
        name: the backend.
        folder: where its session may write.
        timeout: seconds for all of it.
        options: arguments of the backend, each as KEY=VALUE.
        out: where to say what it waits for.

    Returns:
        name, seconds (by stage), problem and remedy (None where all is well).
    """
    with tempfile.TemporaryDirectory(prefix="rhapsody-doctor-") as own:
        report, said = Path(own) / "report", Path(own) / "output"
        logs = bool(os.environ.get("RHAPSODY_LOG_LEVEL"))  # whoever asks for the log wants to see it
        with said.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "rhapsody.cli._examine", name, str(report), folder, *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=None if logs else subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = _follow(process, report, timeout, name, out)
            finally:
                _end(process)
        lines = _lines(report)
        waits = next((line["waits"] for line in reversed(lines) if "waits" in line), "")
        lines = [line for line in lines if "waits" not in line]
        tail = said.read_text(errors="replace").strip()[-_TAIL:]
    seconds = {line["stage"]: line["seconds"] for line in lines if "seconds" in line}
    row: dict[str, Any] = {"name": name, "seconds": seconds, "problem": None, "remedy": None}
    last = lines[-1] if lines else {}
    if "problem" in last:
        row |= {"problem": last["problem"], "remedy": last["remedy"] or None, "stage": last["stage"]}
    elif code is None:
        during = f"it did not come to its end within {timeout:g} s (during: {last.get('stage', 'its start')})"
        row |= {
            "problem": f"{during}: {waits}" if waits else during,
            "remedy": f"RHAPSODY_LOG_LEVEL=DEBUG rhapsody doctor {name} shows what it logs\n{tail}".rstrip(),
        }
    elif last.get("stage") != "end" or code != 0:
        ended = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        row |= {
            "problem": f"its process ended with {ended} (during: {last.get('stage', 'its start')})",
            "remedy": f"the last that it said:\n{tail}" if tail else "it said nothing",
        }
    return row


def _follow(
    process: subprocess.Popen[bytes], report: Path, timeout: float, name: str, out: Console | None
) -> int | None:
    """Wait for the end of an examination, and show what it waits for. Returns its exit code; None: it took too long."""
    deadline = time.monotonic() + timeout
    shown = 0
    while True:
        try:
            return process.wait(max(0.0, min(0.5, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            waiting = [line for line in _lines(report) if "waits" in line]
            for line in waiting[shown:]:
                if out is not None:
                    out.print(f"{escape(name)}, {line['stage']}: {escape(line['waits'])}", soft_wrap=True)
            shown = len(waiting)
            if time.monotonic() > deadline:
                return None


def _lines(report: Path) -> list[dict[str, Any]]:
    """Return what an examination has written so far."""
    whole = report.read_text().rpartition("\n")[0] if report.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End an examination that still runs: as Ctrl-C would, and then for good."""
    for seconds in _GRACE:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):  # there is one more way
                process.wait(seconds)
    with contextlib.suppress(ProcessLookupError):  # the group is gone where nothing was left behind
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _print_row(out: Console, row: dict[str, Any]) -> None:
    cells = "".join(f"{_duration(row['seconds'].get(stage)):>{width}}" for stage, width in _WIDTHS.items())
    verdict = "[red]wrong[/]" if row["problem"] else "[green]well[/]"
    out.print(f"{escape(row['name']):<16}{cells}  {verdict}", soft_wrap=True)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _print_verdict(
    out: Console, wrong: list[dict[str, Any]], environment: Iterable[dict[str, str]], total: int
) -> None:
    for row in wrong:
        out.print(f"\n[red]{escape(row['name'])}[/]: {escape(row['problem'])}", soft_wrap=True)
        if row["remedy"]:
            out.print(f"  {escape(row['remedy'])}", soft_wrap=True)
    for found in environment:
        out.print(f"\n[red]environment[/]: {escape(found['problem'])}\n  {escape(found['remedy'])}", soft_wrap=True)
    missing = sorted({info.remedy for info in available_backends() if not info.installed})
    if missing:
        out.print(f"\nnot installed: {', '.join(missing)}", soft_wrap=True)
    if not wrong and not environment:
        out.print(f"\n{'the backend is' if total == 1 else f'all {total} backends are'} well")
