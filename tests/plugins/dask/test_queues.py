"""One vocabulary for the batch systems that dask-jobqueue knows. `tests/cluster` runs it on Slurm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from distributed.core import Status
from rhapsody.api import BackendConfigurationError, get_backend
from rhapsody_dask.clusters import queue_cluster, queue_request, remove_certificates
from rhapsody_dask.queues import SYSTEMS, QueueRequest

pytestmark = [pytest.mark.engine("dask"), pytest.mark.timeout(60)]
ASKED: dict[str, Any] = {"nodes": 3, "cores": 4, "memory": "8 GB", "walltime": 5430}
SAYS = {
    "slurm": ["-p short", "--cpus-per-task=4", "--mem=8G", "-t 01:30:30"],
    "pbs": ["-q short", "ncpus=4", "walltime=01:30:30"],
    "lsf": ["-q short", "-n 4", "-W 01:31"],
    "sge": ["-q short", "h_rt=01:30:30"],
    "htcondor": ["MY.DaskWorkerCores = 4", "allowed_job_duration = 5430"],
    "oar": ["-q short", "core=4", "walltime=01:30:30"],
}


def written(request: QueueRequest, security: bool | None, folder: Path) -> tuple[str, list[int]]:
    """Return the script of a job of a cluster that is not started, and the modes of the files that it needs."""
    cluster = queue_cluster(request, security, folder)
    try:
        return cluster.job_script(), [file.stat().st_mode & 0o777 for file in folder.iterdir()]
    finally:
        remove_certificates(cluster)
        cluster.status = Status.closed


@pytest.mark.filterwarnings("ignore:OAR Job memory")
@pytest.mark.parametrize("system", SYSTEMS)
async def test_job_script(system: str, tmp_path: Path) -> None:
    """Each batch system is asked for the same nodes, cores and time, and a job's command line has no certificate."""
    queue = {} if system == "htcondor" else {"queue": "short"}
    request = queue_request(system, {**ASKED, **queue})
    assert request.nodes == 3
    script, modes = written(request, None, tmp_path)
    assert [text for text in SAYS[system] if text not in script] == []
    assert "--nworkers 4" in script
    assert f"--tls-key {tmp_path}/" in script
    assert "BEGIN" not in script
    assert modes == [0o600] * 3
    assert not list(tmp_path.iterdir())
    assert "tls" not in written(request, False, tmp_path)[0]


@pytest.mark.parametrize(
    ("system", "change", "problem"),
    [
        ("slurm", {"cores": None}, "cores must be an integer from 1, not None"),
        ("slurm", {"nodes": 0}, "nodes must be"),
        ("pbs", {"memory": None}, "memory must be that of a node"),
        ("lsf", {"walltime": "1 hour"}, "as '01:30:00', not '1 hour'"),
        ("slurm", {"wallime": 60}, "no keyword 'wallime': did you mean walltime"),
        ("slurm", {"security": True}, "give it security="),
        ("htcondor", {"queue": "short"}, "it has no queues"),
    ],
)
def test_unusable_request(system: str, change: dict[str, Any], problem: str) -> None:
    """What a batch system cannot be asked for is an error where it is written, and names the system."""
    with pytest.raises(BackendConfigurationError, match=rf"cluster='{system}': .*{problem}"):
        get_backend("dask", cluster=system, resources={**ASKED, **change})


def test_words_of_dask_jobqueue() -> None:
    """What the vocabulary lacks is given in dask-jobqueue's own words; hours may be given with days."""
    asked = {**ASKED, "memory": 2**30, "walltime": "1-00:00:10", "account": "abc", "interface": "ib0", "processes": 1}
    keywords = queue_request("slurm", asked).keywords
    assert keywords["walltime"] == "24:00:10"
    assert (keywords["memory"], keywords["account"], keywords["processes"]) == ("1073741824 B", "abc", 1)


def test_missing_dask_jobqueue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without dask-jobqueue the error has the command that installs it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendConfigurationError, match=r"pip install rhapsody-dask\[jobqueue\]"):
        get_backend("dask", cluster="slurm", resources=ASKED)
