"""Results for people: a table and a chart of text, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rhapsody.measure.results import Comparison, Point, Spread

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH: Final = 40  # characters of a full bar
_CELLS: Final = (10, 13, 8, 10, 10, 11, 9)  # characters of the columns of the table
_LEGEND: Final = (
    "The table has medians of the rounds. p50, p99: latency of one task on the idle engine. "
    "METG(50%): the task length with which half of the slots' time is useful. memory: of a task that waits."
)


def duration(seconds: float | None) -> str:
    """Return a time with three digits, in s, ms, µs or ns."""
    if seconds is None:
        return "-"
    for symbol, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {symbol}"
    return f"{seconds * 1e9:.0f} ns"


def show(results: Sequence[Comparison], out: Console) -> None:
    """Print results: one table for all, and a chart of efficiency for each."""
    name = max(12, *(len(result.backend) for result in results)) + 2
    titles = ("tasks/s", "time a task", "ratio", "p50", "p99", "METG(50%)", "memory")
    out.print(_line(name, "", titles), soft_wrap=True)
    for result in results:
        raw = result.raw_task_seconds
        ratio = result.ratio
        ours = (
            f"{1 / result.task_seconds.median:,.0f}",
            duration(result.task_seconds.median),
            f"{ratio.median:.3f}" if ratio is not None else "",
            *_latency(result.latency),
            duration(result.metg) if result.curve else "",
            f"{result.bytes_per_task:.0f} B" if result.bytes_per_task is not None else "",
        )
        out.print(_line(name, result.backend, ours), soft_wrap=True, markup=False)
        if raw is not None:
            cells = (f"{1 / raw.median:,.0f}", duration(raw.median), "1", *_latency(result.raw_latency))
            more = (duration(result.raw_metg),) if result.raw_curve else ()
            out.print(_line(name, "  raw engine", (*cells, *more)), soft_wrap=True)
    out.print()
    for result in results:
        raw, ratio = result.raw_task_seconds, result.ratio
        text = (
            f"{result.backend}: {result.rounds} x {result.tasks:,} {result.kind} on {result.slots} slots, "
            f"{_range(result.task_seconds)}"
        )
        if raw is not None and ratio is not None:
            text += (
                f"; raw: {result.rounds} x {result.raw_tasks:,} by {result.raw}, {_range(raw)}; "
                f"ratio {ratio.low:.3f} to {ratio.high:.3f}"
            )
        out.print(text, soft_wrap=True, markup=False)
    out.print(_LEGEND, soft_wrap=True)
    for result in results:
        if result.curve:
            out.print(f"\n{result.backend}: useful part of the slots' time, by the length of tasks", soft_wrap=True)
            _bars(result, out)


def _line(width: int, name: str, cells: Sequence[str]) -> str:
    return (f"{name:<{width}}" + "".join(f"{cell:>{_CELLS[place]}}" for place, cell in enumerate(cells))).rstrip()


def _latency(latency: tuple[float, float] | None) -> tuple[str, str]:
    return (duration(latency[0]), duration(latency[1])) if latency is not None else ("", "")


def _range(spread: Spread) -> str:
    return f"{duration(spread.low)} to {duration(spread.high)}"


def _bars(result: Comparison, out: Console) -> None:
    raw = {point.seconds: point for point in result.raw_curve}
    ours = {point.seconds: point for point in result.curve}
    for seconds in sorted({*ours, *raw}, reverse=True):
        out.print(f"  {duration(seconds):>8}  {result.backend[:10]:<10} {_bar(ours.get(seconds))}", soft_wrap=True)
        if result.raw is not None:
            out.print(f"  {'':>8}  {'raw':<10} {_bar(raw.get(seconds))}", soft_wrap=True)


def _bar(point: Point | None) -> str:
    if point is None:
        return "not measured: less than a quarter useful with longer tasks"
    return f"{'█' * round(min(point.efficiency, 1) * _WIDTH):<{_WIDTH}} {point.efficiency:4.0%}"


def plot(results: Sequence[Comparison], path: str) -> None:
    """Write a picture of efficiency against task length; its format follows from the name.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for number, result in enumerate(results):
        color = f"C{number}"
        for curve, style, label in (
            (result.curve, "-o", result.backend),
            (result.raw_curve, ":s", f"raw: {result.raw}"),
        ):
            if curve:
                lengths, useful = [point.seconds for point in curve], [point.efficiency for point in curve]
                axes.plot(lengths, useful, style, color=color, label=label)
    axes.axhline(0.5, color="0.7", linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("length of a task (seconds)")
    axes.set_ylabel("useful part of the slots' time")
    axes.legend()
    figure.savefig(path, dpi=150)
