"""`rhapsody bench`."""

import json

import click
import pytest
from click.testing import CliRunner
from rhapsody.cli import group


def bench(*arguments):
    done = CliRunner().invoke(group, ["bench", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.serial
def test_bench_compares_and_plots(tmp_path):
    """`bench` compares threads and processes with their executors and draws a picture."""
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
def test_bench_measures_each_kind(kind, tasks):
    """`bench` measures each kind of task and shows a table."""
    out = bench("-b", "concurrent,max_workers=2", "-k", kind, "-n", str(tasks), "-r", "1", "--brief")
    assert "concurrent,max_workers=2" in out
    assert f"1 x {tasks} {kind} on 2 slots" in out
    assert f"raw: 1 x {tasks} by ThreadPoolExecutor.submit + wait" in out


def test_bench_refuses_an_empty_plot():
    """`bench` refuses a picture of what is not measured."""
    done = CliRunner().invoke(group, ["bench", "--plot", "x.svg", "--brief"])
    assert done.exit_code == 2
    assert "--plot" in done.output


def test_backend_arguments_may_be_json(monkeypatch):
    """The arguments of a backend may be JSON that holds commas."""
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
