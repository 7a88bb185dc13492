"""`rhapsody bench`: what a backend costs, beside its raw engine in the same run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from rhapsody.cli._common import build_backend, console, print_json, scratch
from rhapsody.measure import KINDS, Comparison, compare, find_raw_engine, plot, show

_SHORT: Final = {  # names for the two forms of the local backend
    "threads": "concurrent,executor=threads",
    "processes": "concurrent,executor=processes",
}


@click.command()
@click.option(
    "-b",
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME[,KEY=VALUE...]",
    help="A backend and its arguments; `threads` and `processes` are the local ones. May be given again, to compare. "
    "Default: threads and processes.",
)
@click.option("-n", "--tasks", type=click.IntRange(min=1), help="Tasks in a round. Default: what suits the kind.")
@click.option("-k", "--kind", type=click.Choice(list(KINDS)), default="noop", show_default=True, help="Of tasks.")
@click.option("-r", "--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Of each, in turn.")
@click.option("--brief", is_flag=True, help="Leave out latency, efficiency by task length, and memory.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--plot", "picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw efficiency against task length."
)
def command(
    backends: tuple[str, ...],
    tasks: int | None,
    kind: str,
    rounds: int,
    brief: bool,
    as_json: bool,
    picture: Path | None,
) -> None:
    """Measure what a task costs on a backend, and on its raw engine between the rounds.

    Throughput, the latency of one task, METG(50%) (the task length with which half of the slots' time is useful), and
    the memory of a waiting task: medians of the rounds, with the least and the most. Figures are of this machine as it
    is now; the ratios say more.
    """
    if picture is not None and (brief or KINDS[kind].function is None):
        raise click.UsageError("--plot draws efficiency by task length, which --brief and executables leave out")
    results: list[Comparison] = []
    with scratch() as folder, _sessions_in(folder):
        for text in backends or tuple(_SHORT):
            results.append(_measure(text, kind, tasks, rounds, brief))
    if picture is not None:
        try:
            plot(results, str(picture))
        except ImportError as error:
            raise click.ClickException(
                f"--plot needs matplotlib: pip install 'rhapsody-core[bench]' ({error})"
            ) from None
    if as_json:
        print_json([result.as_dict() for result in results])
    else:
        show(results, console())


@contextlib.contextmanager
def _sessions_in(folder: str) -> Iterator[None]:
    """Have the sessions of the measurement write to a folder, also those of other processes; and then no longer."""
    held = os.environ.get("RHAPSODY_WORK_DIR")
    os.environ["RHAPSODY_WORK_DIR"] = folder
    try:
        yield
    finally:
        if held is None:
            del os.environ["RHAPSODY_WORK_DIR"]
        else:
            os.environ["RHAPSODY_WORK_DIR"] = held


def _measure(text: str, kind: str, tasks: int | None, rounds: int, brief: bool) -> Comparison:
    name, *options = _SHORT.get(text.partition(",")[0], text.partition(",")[0]).split(",")
    options += _options(text)
    backend = build_backend(name, options)

    def on_stage(stage: str) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{text}: {stage}\033[K", err=True, nl=stage == "memory")

    return asyncio.run(
        compare(
            backend,
            find_raw_engine(name),
            name=text,
            kind=kind,
            tasks=tasks,
            rounds=rounds,
            details=not brief,
            on_stage=on_stage,
        )
    )


def _options(text: str) -> list[str]:
    """Return what follows the name in `NAME,KEY=VALUE,...`; a comma within a JSON value parts nothing."""
    options: list[str] = []
    for piece in text.split(",")[1:]:
        if options and _is_open(options[-1]):
            options[-1] += f",{piece}"
        else:
            options.append(piece)
    return options


def _is_open(option: str) -> bool:
    """Whether an option ends within a JSON value."""
    value = option.partition("=")[2]
    if not value.startswith(("{", "[", '"')):
        return False
    try:
        json.loads(value)
    except ValueError:
        return True
    return False
