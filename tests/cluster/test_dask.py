"""Dask on several machines: workers that Slurm starts, and a scheduler's address."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from .conftest import Script, wait_until, wait_until_clean
from .machines import LOGIN, PROJECT, Cluster

pytestmark = [pytest.mark.engine("dask"), pytest.mark.timeout(240)]


@pytest.mark.parametrize(
    ("backend", "folder"),
    [("dask-slurm", "sessions"), ("dask-jobqueue", "/tmp/sessions"), ("dask-address", "sessions")],
)
def test_tasks_on_all_nodes(backend: str, folder: str, cluster: Cluster, script: Callable[..., Script]) -> None:
    """Functions and executables run on every node, a cancel reaches all, and nothing is left; shared folder or not."""
    running = script("spread.py", backend, folder)
    assert set(running.expect("functions")) == set(cluster.compute)
    outcomes = running.expect("executables")
    assert {out.strip() for _, out, _ in outcomes} == set(cluster.compute)
    assert all(code == 3 and err == f"error of {out}" for code, out, err in outcomes)
    running.expect("sleeping")
    assert [len(cluster.processes(node, "sleep 4321")) for node in cluster.compute] == [2, 2]
    running.go_on()
    assert running.expect("canceled") == ["CANCELED"] * 4
    wait_until(lambda: not any(cluster.processes(node, "sleep 4321") for node in cluster.compute), "no executables")
    running.go_on()
    running.expect("closed")
    running.finish()
    wait_until_clean(cluster)


@pytest.mark.parametrize("how", ["power_off", "cut"])
def test_lost_node(how: str, cluster: Cluster, script: Callable[..., Script]) -> None:
    """What a lost node ran fails and names it; the rest runs elsewhere, once; the session goes on and closes."""
    running = script("lost.py", "dask-slurm", "sessions")
    running.expect("running")
    getattr(cluster, how)("node2")
    running.go_on()
    running.expect("seconds")
    (states,) = running.expect("states")
    failed = running.expect("failed")
    names = re.compile(r"worker (node2|10\.88\.0\.12) ")  # its address where it was lost before it said its name
    assert [one for one in failed if one[0] != "WorkerLostError" or not names.search(one[1])] == []
    assert [begun for _, _, begun in failed] == [["node2"]] * len(failed)
    assert states["DONE"] == 60 - len(failed)
    assert running.expect("twice") == []
    assert running.expect("late") == ["node1"]
    running.expect("closed")
    running.finish()


def block(language: str, number: int) -> str:
    """Return a block of code of the page on clusters."""
    page = (PROJECT / "docs" / "how-to" / "clusters.md").read_text()
    return page.split(f"```{language}\n")[number].partition("```")[0]


def test_script_on_the_login_node(cluster: Cluster) -> None:
    """The script of the page on clusters runs on all nodes."""
    (cluster.home / "ensemble.py").write_text(block("python", 1))
    assert cluster.run(LOGIN, "python", "ensemble.py").stdout == "['node1', 'node2'] DONE\n"


def test_script_of_a_job(cluster: Cluster) -> None:
    """The job of the page on clusters runs on all of its nodes."""
    (cluster.home / "job.py").write_text(block("python", 2))
    (cluster.home / "job.sh").write_text(block("bash", 1))
    cluster.run(LOGIN, "sbatch", "--wait", "--output=job.txt", "job.sh")
    assert "['node1', 'node2']\n" in (cluster.home / "job.txt").read_text()
