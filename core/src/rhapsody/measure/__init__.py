"""Measures a backend beside its raw engine, in the same run: what `rhapsody bench` and `benchmarks/` stand on.

compare     rounds of both, interleaved: seconds a task, latency, METG, memory
RawEngine   how a plugin lets its engine be measured without RHAPSODY (entry points of the group `rhapsody.bench`)
show, plot  the results as a table and a chart of text, and as a picture
"""

from __future__ import annotations

from rhapsody.measure.chart import plot, show
from rhapsody.measure.compare import compare
from rhapsody.measure.raw import RawEngine, find_raw_engine
from rhapsody.measure.results import Comparison, Point, Spread
from rhapsody.measure.work import KINDS, Kind

__all__ = ["KINDS", "Comparison", "Kind", "Point", "RawEngine", "Spread", "compare", "find_raw_engine", "plot", "show"]
