"""`rhapsody demo`: real work on real input, on any backend."""

from __future__ import annotations

import asyncio
import itertools
import platform
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

import click
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from rhapsody import settings
from rhapsody.cli._common import backend_arguments, build_backend, console, print_json, scratch
from rhapsody.cli._survey import GZIP_SCRIPT, Survey, sources, survey
from rhapsody.hookspecs import hookimpl
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.model.transition import Transition
from rhapsody.seam.backend import AttachableBackend
from rhapsody.sessions.session import Session

_ROWS: Final = 12  # packages in the table of results
_ERRORS: Final = 5  # failed tasks that are described


@click.command()
@backend_arguments()
@click.option(
    "-n",
    "--tasks",
    type=click.IntRange(min=1),
    help="Source files to survey; all of them by default, and again from the first where there are fewer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and no progress.")
def command(backend: str | None, options: tuple[str, ...], tasks: int | None, as_json: bool) -> None:
    """Survey the Python standard library as an ensemble of tasks.

    Each source file of the standard library on this machine is parsed in a function task (lines, functions, classes,
    deepest nesting, most complex function), and the sources of each package are compressed with gzip in an
    executable task. Exit status 1 if a task did not succeed.
    """
    try:
        found = sources()
    except FileNotFoundError as error:
        raise click.ClickException(str(error)) from error
    jobs = _jobs(found, tasks)
    chosen = build_backend(backend or settings.default_backend(), options)
    progress: _Progress | None = None if as_json else _Bar() if sys.stdout.isatty() else _Lines()
    with scratch() as folder:
        report = asyncio.run(_run(chosen, jobs, folder, progress))
    if as_json:
        print_json(report)
    else:
        _print(report)
    if set(report["states"]) != {TaskState.DONE.value}:
        raise SystemExit(1)


Jobs = dict[str, tuple[list[str], list[ComputeTask], ComputeTask]]  # by package: files, surveys, compression


def _jobs(found: dict[str, list[str]], count: int | None) -> Jobs:
    """Describe the tasks; a file that is surveyed more than once counts once."""
    files = [(package, path) for package, paths in found.items() for path in paths]
    jobs: Jobs = {}
    for package, path in itertools.islice(itertools.cycle(files), count or len(files)):
        if package not in jobs:
            jobs[package] = [], [], ComputeTask(executable="sh", arguments=[])
        jobs[package][0].append(path)
        jobs[package][1].append(ComputeTask(function=survey, args=(path,)))
    return {
        package: (
            paths,
            surveys,
            ComputeTask(executable="sh", arguments=["-c", GZIP_SCRIPT, "sh", *dict.fromkeys(paths)]),
        )
        for package, (paths, surveys, _) in jobs.items()
    }


async def _run(backend: AttachableBackend, jobs: Jobs, work_dir: str, progress: _Progress | None) -> dict[str, Any]:
    """Run the tasks, and return what came of them."""
    began = time.perf_counter()
    surveys = [task for _, tasks, _ in jobs.values() for task in tasks]
    programs = [task for _, _, task in jobs.values()]
    everything = programs + surveys
    async with Session(backends=[backend], work_dir=work_dir) as session:
        started = time.perf_counter()
        if progress is not None:
            progress.begin(backend.name, len(everything))
            session.observe(progress)
        try:
            await session.submit_tasks(everything)
            await session.wait_tasks()
        finally:
            if progress is not None:
                progress.end()
        seconds = time.perf_counter() - started
    failed = [task for task in everything if task.state is not TaskState.DONE]
    return {
        "backend": backend.name,
        "python": platform.python_version(),
        "packages": [_package(name, *job) for name, job in jobs.items()],
        "states": Counter(task.state.value for task in everything),
        "kinds": {"function": len(surveys), "executable": len(programs)},
        "start_seconds": round(started - began, 4),
        "seconds": round(seconds, 4),
        "tasks_per_second": round(len(everything) / seconds, 1),
        "errors": [f"{task.uid}: {task.exception}" for task in failed],
    }


def _package(name: str, paths: Sequence[str], tasks: Sequence[ComputeTask], gzip: ComputeTask) -> dict[str, Any]:
    """Add up what the tasks of one package found."""
    surveyed = dict(zip(paths, tasks, strict=True))
    done: list[Survey] = [task.return_value for task in surveyed.values() if task.state is TaskState.DONE]
    top = max(done, key=lambda one: one.complexity, default=None)
    return {
        "name": name,
        "files": len(done),
        **{field: sum(getattr(one, field) for one in done) for field in ("lines", "functions", "classes", "size")},
        "depth": max((one.depth for one in done), default=0),
        "complexity": top.complexity if top else 0,
        "most_complex": top.most_complex if top else "",
        "gzip_size": int(gzip.stdout or 0) if gzip.state is TaskState.DONE else None,
    }


def _print(report: dict[str, Any]) -> None:
    out = console()
    packages = sorted(report["packages"], key=lambda package: package["lines"], reverse=True)
    out.print(_results(packages, out.width))
    if len(packages) > _ROWS:
        out.print(f"... and {len(packages) - _ROWS} more packages")
    total = sum(report["states"].values())
    states = ", ".join(f"{count} {state}" for state, count in report["states"].items())
    lines = sum(package["lines"] for package in packages)
    kinds = report["kinds"]
    out.print(
        f"\n{lines:,} lines of Python {report['python']} on backend [bold]{escape(report['backend'])}[/]: "
        f"{kinds['function']} function tasks and {kinds['executable']} executable tasks\n"
        f"tasks by state: {states}\n"
        f"{total} tasks in {report['seconds']:.2f} s: [bold]{report['tasks_per_second']:,.0f} tasks per second[/] "
        f"(the backend started in {report['start_seconds']:.2f} s)",
        soft_wrap=True,
    )
    for error in report["errors"][:_ERRORS]:
        out.print(f"[red]failed[/] {escape(error)}", soft_wrap=True)
    if len(report["errors"]) > _ERRORS:
        out.print(f"... and {len(report['errors']) - _ERRORS} more")


def _results(packages: Iterable[dict[str, Any]], width: int) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), show_edge=False, header_style="bold")
    table.add_column("Package", no_wrap=True)
    for header in ("Files", "Lines", "Functions", "Classes", "Depth", "gzip"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("Most complex", no_wrap=True)
    for package in list(packages)[:_ROWS]:
        size, packed = package["size"], package["gzip_size"]
        table.add_row(
            escape(_crop(package["name"], 16)),
            *(f"{package[field]:,}" for field in ("files", "lines", "functions", "classes", "depth")),
            f"{packed / size:.0%}" if packed and size else "-",
            escape(f"{package['complexity']:>3} {_crop(package['most_complex'], max(12, width - 64))}"),
        )
    return table


def _crop(text: str, width: int) -> str:
    """Keep the end of a dotted name, which says most, or else the beginning."""
    while len(text) > width and "." in text.strip("."):
        text = text.partition(".")[2]
    return text if len(text) <= width else f"{text[: width - 1]}…"


class _Progress(ABC):
    """An observer of the session that counts the ends of tasks."""

    def __init__(self) -> None:
        self.total = 0
        self.ended = 0

    def begin(self, backend: str, total: int) -> None:
        """Show that nothing has ended yet."""
        self.total = total

    @hookimpl
    def rhapsody_tasks_changed(self, transitions: Sequence[Transition]) -> None:
        """Count, and show the count."""
        self.ended += sum(change.new.is_final for change in transitions)
        self.show()

    @abstractmethod
    def show(self) -> None:
        """Show the count."""

    def end(self) -> None:  # noqa: B027  # only a bar has something to take away
        """Show nothing any more."""


class _Bar(_Progress):
    """A live bar, for a terminal."""

    def begin(self, backend: str, total: int) -> None:
        """Draw the bar."""
        super().begin(backend, total)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn(),
            console=console(), transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task(f"demo on {escape(backend)}", total=total)
        self._bar.start()

    def show(self) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=self.ended)

    def end(self) -> None:
        """Take the bar away."""
        self._bar.stop()


class _Lines(_Progress):
    """A line for each quarter, where the output is no terminal."""

    _shown = 0

    def show(self) -> None:
        """Print a line if a quarter is full."""
        quarter = 4 * self.ended // self.total
        if quarter > self._shown:
            self._shown = quarter
            click.echo(f"{self.ended} of {self.total} tasks have ended")
