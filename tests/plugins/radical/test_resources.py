"""What a user may ask of the pilot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rhapsody.errors import BackendConfigurationError
from rhapsody_radical import catalogue, description, resources
from rhapsody_radical.backend import RadicalExecutionBackend
from rhapsody_radical.resources import read_resources

MACHINES = {
    "local.localhost": {
        "default_schema": "local",
        "cores_per_node": 8,
        "schemas": {"local": {"job_manager_endpoint": "fork://localhost", "filesystem_endpoint": "file://localhost"}},
    },
    "ornl.frontier": {
        "default_schema": "batch",
        "cores_per_node": 56,
        "schemas": {
            "batch": {"job_manager_endpoint": "slurm://localhost/", "filesystem_endpoint": "file://localhost/"},
            "ssh": {"job_manager_endpoint": "ssh+slurm://frontier/", "filesystem_endpoint": "sftp://frontier/"},
        },
    },
}


def test_default_pilot() -> None:
    """Without resources the pilot is this machine for half an hour."""
    request = read_resources(None, MACHINES)
    cores = len(os.sched_getaffinity(0))
    assert request.description == {
        "resource": "local.localhost",
        "runtime": 30,
        "cores": cores,
        "exit_on_error": False,
    }
    assert (request.slots, request.local, request.shared_files) == (cores, True, True)


def test_pilot_of_nodes() -> None:
    """A pilot of nodes has the cores of its nodes."""
    request = read_resources({"resource": "ornl.frontier", "nodes": 2, "queue": "batch", "project": "abc"}, MACHINES)
    assert (request.slots, request.local, request.shared_files) == (112, False, True)


def test_ssh_machine_shares_no_files() -> None:
    """A machine behind ssh shares no files."""
    request = read_resources({"resource": "ornl.frontier", "cores": 56, "access_schema": "ssh"}, MACHINES)
    assert not request.shared_files


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"core": 4}, "resources have no 'core'; did you mean 'cores'"),
        ({"resource": "local.localhots"}, "no machine 'local.localhots'; did you mean 'local.localhost'"),
        ({"resource": "ornl.frontier", "nodes": 1, "access_schema": "bach"}, "did you mean 'batch'"),
        ({"resource": "ornl.frontier"}, "cores or nodes"),
        ({"resource": "ornl.frontier", "nodes": 1, "cores": 4}, "give nodes or cores, not both"),
        ({"backup_nodes": 1}, "backup_nodes need nodes"),
        ({"cores": 0}, "cores must be at least 1"),
        ({"cores": "4"}, "cores must be int, not '4'"),
        ({"cores": True}, "cores must be int, not True"),
        ({"runtime": 0}, "runtime must be at least 1"),
        ({"gpus": -1}, "gpus must be at least 0"),
        ({"exit_on_error": True}, "never ends your process"),
        ({"uid": "pilot.7"}, "the backend names it"),
        ({7: 7}, "resources have no 7"),
        ({"prepare_env": {"env": {1, 2}}}, "prepare_env cannot travel to RADICAL-Pilot"),
        ([("cores", 4)], "must be a mapping"),
    ],
)
def test_senseless_resources_are_named(given: object, said: str) -> None:
    """What makes no sense is refused by name."""
    with pytest.raises(BackendConfigurationError) as caught:
        read_resources(given, MACHINES)  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_nested_paths_become_text() -> None:
    """Paths become text wherever they are."""
    request = read_resources({"sandbox": Path("/here"), "input_staging": [{"source": Path("/a")}]}, MACHINES)
    assert request.description["sandbox"] == "/here"
    assert request.description["input_staging"] == [{"source": "/a"}]


@pytest.mark.engine("radical")
def test_backend_refuses_at_construction() -> None:
    """The backend refuses them where it is built."""
    with pytest.raises(BackendConfigurationError, match=r"did you mean 'ornl\.frontier'"):
        RadicalExecutionBackend(resources={"resource": "ornl.fronteir", "nodes": 1})


@pytest.mark.engine("radical")
def test_building_imports_no_radical() -> None:
    """Building the backend imports nothing of RADICAL."""
    code = (
        "import os, sys; fork = os.fork; import rhapsody_radical.backend as b; b.RadicalExecutionBackend();"
        "assert os.fork is fork; print([name for name in sys.modules if name.startswith('radical.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.engine("radical")
def test_machines_are_radicals() -> None:
    """The machines are those that RADICAL-Pilot itself knows."""
    code = (
        "import json, radical.utils as ru; c = ru.Config('radical.pilot.resource', name='*', expand=False);"
        "print(json.dumps(sorted(f'{site}.{host}' for site in c for host in c[site])))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert sorted(catalogue.machines()) == json.loads(done.stdout)


def test_users_machines_are_known(tmp_path: Path) -> None:
    """The user's own machines are known too."""
    folder = catalogue.user_folder({"HOME": str(tmp_path)})
    folder.mkdir(parents=True)
    (folder / "resource_home.json").write_text('# my own\n{"cluster": {"cores_per_node": 3}}')
    assert catalogue.machines({"HOME": str(tmp_path)})["home.cluster"] == {"cores_per_node": 3}


@pytest.mark.engine("radical")
def test_every_field_is_decided() -> None:
    """Every field of RADICAL-Pilot's descriptions is accepted, or refused with a reason."""
    code = (
        "import json, radical.pilot as rp;"
        "print(json.dumps([list(rp.PilotDescription._schema), list(rp.TaskDescription._schema)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pilot, task = json.loads(done.stdout)
    assert set(pilot) == {*resources.FIELDS, *resources.NOT_YOURS}
    assert set(task) == {*description.OPTIONS, *description.NOT_OPTIONS}
