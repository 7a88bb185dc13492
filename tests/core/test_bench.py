import json
from contextlib import contextmanager

import click
import pytest
from click.testing import CliRunner
from rhapsody import measure
from rhapsody.cli import group
from rhapsody.measure.compare import metg
from rhapsody.measure.results import Point, Spread


def bench(*arguments):
    done = CliRunner().invoke(group, ["bench", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_bench_compares_threads_and_processes_with_their_executors_and_draws_a_picture(tmp_path):
    picture = tmp_path / "efficiency.svg"
    out = bench("--tasks", "60", "--rounds", "1", "--json", "--plot", str(picture))
    threads, processes = json.loads(out)
    assert [threads["backend"], processes["backend"]] == ["threads", "processes"]
    assert threads["raw"] == "ThreadPoolExecutor.submit + wait"
    assert processes["raw"] == "ProcessPoolExecutor.submit + wait"
    for result in (threads, processes):
        assert result["tasks"] == result["raw_tasks"] == 60
        assert result["ratio"]["median"] == pytest.approx(
            result["task_seconds"]["median"] / result["raw_task_seconds"]["median"]
        )
        assert 0 < result["latency"][0] <= result["latency"][1]
        assert 0 < result["curve"][0]["efficiency"] <= 1.05
        assert 100 < result["bytes_per_task"] < 4096
    assert "<svg" in picture.read_text()


@pytest.mark.parametrize(("kind", "tasks"), [("executable", 4), ("payload", 5), ("sleep", 4)])
def test_bench_measures_each_kind_of_task_and_shows_a_table(kind, tasks):
    out = bench("-b", "concurrent,max_workers=2", "-k", kind, "-n", str(tasks), "-r", "1", "--brief")
    assert "concurrent,max_workers=2" in out
    assert f"1 x {tasks} {kind} on 2 slots" in out
    assert f"raw: 1 x {tasks} by ThreadPoolExecutor.submit + wait" in out


def test_bench_refuses_a_picture_of_what_is_not_measured():
    done = CliRunner().invoke(group, ["bench", "--plot", "x.svg", "--brief"])
    assert done.exit_code == 2
    assert "--plot" in done.output


def test_a_backend_without_a_raw_engine_is_measured_alone():
    assert measure.find_raw_engine("nobody's") is None


def test_the_raw_engine_gets_no_more_tasks_than_it_can_bear_and_is_closed():
    import asyncio

    from rhapsody.backends import ConcurrentExecutionBackend

    said = []

    @contextmanager
    def slow(backend, slots):
        yield measure.RawEngine(label="slow", run=lambda function, calls: said.append((slots, len(calls))), most=7)
        said.append("closed")

    result = asyncio.run(
        measure.compare(ConcurrentExecutionBackend(max_workers=3), slow, tasks=50, rounds=2, details=False)
    )
    assert said == [(3, 7), (3, 7), (3, 7), "closed"]
    assert (result.tasks, result.raw_tasks, result.raw) == (50, 7, "slow")


def test_the_metg_is_where_the_curve_falls_through_one_half():
    curve = [Point(1.0, 0.9), Point(0.01, 0.7), Point(0.0001, 0.3)]
    assert metg(curve) == pytest.approx(0.001)
    assert metg(curve[:2]) is None


def test_a_spread_is_a_median_and_a_range():
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


def test_the_arguments_of_a_backend_may_be_json_that_holds_commas(monkeypatch):
    given = []

    def build(name, options):
        given.append((name, options))
        raise click.ClickException("that is all")

    monkeypatch.setattr("rhapsody.cli.bench.build_backend", build)
    for text in (
        'dask,resources={"n_workers":2, "threads_per_worker":1},name=a',
        "processes,max_workers=2,initargs=[1,[2,3]]",
        "dask",
    ):
        CliRunner().invoke(group, ["bench", "-b", text])
    assert given == [
        ("dask", ['resources={"n_workers":2, "threads_per_worker":1}', "name=a"]),
        ("concurrent", ["executor=processes", "max_workers=2", "initargs=[1,[2,3]]"]),
        ("dask", []),
    ]
