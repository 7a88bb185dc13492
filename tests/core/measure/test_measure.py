"""Measures: the raw engine, spreads, and the METG."""

from contextlib import contextmanager

import pytest
from rhapsody import measure
from rhapsody.measure.compare import metg
from rhapsody.measure.results import Point, Spread


def test_backend_without_raw_engine():
    """A backend without a raw engine is measured alone."""
    assert measure.find_raw_engine("nobody's") is None


def test_raw_engine_is_bounded_and_closed():
    """The raw engine gets at most as many tasks as it can bear, and is closed."""
    import asyncio

    from rhapsody.backends import ConcurrentExecutionBackend

    said: list[object] = []

    @contextmanager
    def slow(backend, slots):
        yield measure.RawEngine(label="slow", run=lambda function, calls: said.append((slots, len(calls))), most=7)
        said.append("closed")

    result = asyncio.run(
        measure.compare(ConcurrentExecutionBackend(max_workers=3), slow, tasks=50, rounds=2, details=False)
    )
    assert said == [(3, 7), (3, 7), (3, 7), "closed"]
    assert (result.tasks, result.raw_tasks, result.raw) == (50, 7, "slow")


def test_metg_is_where_the_curve_crosses():
    """The METG is where the curve falls through one half."""
    curve = [Point(1.0, 0.9), Point(0.01, 0.7), Point(0.0001, 0.3)]
    assert metg(curve) == pytest.approx(0.001)
    assert metg(curve[:2]) is None


def test_spread_is_median_and_range():
    """A spread is a median and a range."""
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
