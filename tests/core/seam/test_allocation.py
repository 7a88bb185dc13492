"""Where a program runs: what batch systems say of a job. The values are those that they set, by their manuals."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from rhapsody.api import ComputeTask, Session
from rhapsody.seam.allocation import current_allocation, expand

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_JOB_CPUS_PER_NODE": "4(x2)",
    "SLURM_GPUS_ON_NODE": "2",
}


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        (SLURM, "Slurm job 7: 2 nodes (node1, node2), 4 cores and 2 GPUs on this one"),
        ({"FLUX_JOB_ID": "f2", "FLUX_JOB_NNODES": "3"}, "Flux job f2: 3 nodes"),
        ({"PBS_JOBID": "9.head", "PBS_NODEFILE": "{file}"}, "PBS job 9.head: 2 nodes (a, b), 2 cores on this one"),
        ({"PBS_JOBID": "9.head", "NCPUS": "8"}, "PBS job 9.head: 1 node, 8 cores on this one"),
        ({"LSB_JOBID": "5", "LSB_MCPU_HOSTS": "a 16 b 16"}, "LSF job 5: 2 nodes (a, b), 16 cores on this one"),
        ({}, "None"),
    ],
    ids=["slurm", "flux", "pbs", "pbs-one-node", "lsf", "none"],
)
def test_allocation(environment: dict[str, str], line: str, tmp_path: Path) -> None:
    """The variables of each batch system give its job, nodes, cores and GPUs."""
    file = tmp_path / "nodes"
    file.write_text("a\na\nb\nb\n")
    given = {name: value.format(file=file) for name, value in environment.items()}
    assert str(current_allocation(given)) == line


def test_hosts_of_a_list() -> None:
    """A list of Slurm's names each host, with leading zeros, ranges and single ones."""
    assert list(expand("login,n[01-03,7]-ib,gpu1")) == ["login", "n01-ib", "n02-ib", "n03-ib", "n7-ib", "gpu1"]


@pytest.mark.parametrize(("copies", "warnings"), [("1", 1), ("2", 0)])
async def test_one_node_of_several(
    copies: str, warnings: int, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, tmp_path: Path
) -> None:
    """The local backend says once that it uses one node of several, unless each node runs a copy of the program."""
    for name, value in {**SLURM, "SLURM_STEP_NUM_TASKS": copies}.items():
        monkeypatch.setenv(name, value)
    async with Session(backends=["concurrent"], work_dir=tmp_path) as session:
        await session.submit_tasks([ComputeTask(function=abs, args=(-1,))])
        await session.wait_tasks()
        await asyncio.sleep(0)
    texts = [str(one.message) for one in recwarn if "one of the 2 nodes of Slurm job 7" in str(one.message)]
    assert len(texts) == warnings
    assert all("dragon" in text and "dask" in text for text in texts)
