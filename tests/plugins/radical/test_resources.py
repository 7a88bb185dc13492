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


def test_without_resources_the_pilot_is_this_machine_for_half_an_hour() -> None:
    request = read_resources(None, MACHINES)
    cores = len(os.sched_getaffinity(0))
    assert request.description == {
        "resource": "local.localhost",
        "runtime": 30,
        "cores": cores,
        "exit_on_error": False,
    }
    assert (request.slots, request.local, request.shared_files) == (cores, True, True)


def test_a_pilot_of_nodes_has_the_cores_of_its_nodes() -> None:
    request = read_resources({"resource": "ornl.frontier", "nodes": 2, "queue": "batch", "project": "abc"}, MACHINES)
    assert (request.slots, request.local, request.shared_files) == (112, False, True)


def test_a_machine_behind_ssh_shares_no_files() -> None:
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
def test_what_makes_no_sense_is_refused_by_name(given: object, said: str) -> None:
    with pytest.raises(BackendConfigurationError) as caught:
        read_resources(given, MACHINES)  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_paths_become_text_wherever_they_are() -> None:
    request = read_resources({"sandbox": Path("/here"), "input_staging": [{"source": Path("/a")}]}, MACHINES)
    assert request.description["sandbox"] == "/here"
    assert request.description["input_staging"] == [{"source": "/a"}]


@pytest.mark.engine("radical")
def test_the_backend_refuses_them_where_it_is_built() -> None:
    with pytest.raises(BackendConfigurationError, match=r"did you mean 'ornl\.frontier'"):
        RadicalExecutionBackend(resources={"resource": "ornl.fronteir", "nodes": 1})


@pytest.mark.engine("radical")
def test_building_the_backend_imports_nothing_of_radical() -> None:
    code = (
        "import os, sys; fork = os.fork; import rhapsody_radical.backend as b; b.RadicalExecutionBackend();"
        "assert os.fork is fork; print([name for name in sys.modules if name.startswith('radical.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.engine("radical")
def test_the_machines_are_those_that_radical_pilot_itself_knows() -> None:
    code = (
        "import json, radical.utils as ru; c = ru.Config('radical.pilot.resource', name='*', expand=False);"
        "print(json.dumps(sorted(f'{site}.{host}' for site in c for host in c[site])))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert sorted(catalogue.machines()) == json.loads(done.stdout)


def test_the_users_own_machines_are_known_too(tmp_path: Path) -> None:
    folder = catalogue.user_folder({"HOME": str(tmp_path)})
    folder.mkdir(parents=True)
    (folder / "resource_home.json").write_text('# my own\n{"cluster": {"cores_per_node": 3}}')
    assert catalogue.machines({"HOME": str(tmp_path)})["home.cluster"] == {"cores_per_node": 3}


@pytest.mark.engine("radical")
def test_every_field_of_radical_pilots_descriptions_is_either_accepted_or_refused_with_a_reason() -> None:
    code = (
        "import json, radical.pilot as rp;"
        "print(json.dumps([list(rp.PilotDescription._schema), list(rp.TaskDescription._schema)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pilot, task = json.loads(done.stdout)
    assert set(pilot) == {*resources.FIELDS, *resources.NOT_YOURS}
    assert set(task) == {*description.OPTIONS, *description.NOT_OPTIONS}
