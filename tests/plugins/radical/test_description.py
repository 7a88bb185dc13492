"""A task in RADICAL-Pilot's words."""

from __future__ import annotations

import math
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import ComputeTask, Resources
from rhapsody.errors import UnsupportedError
from rhapsody_radical.description import check, check_fields, describe_executable, describe_unit, escape
from rhapsody_radical.pilot import Listener, PilotProcess
from rhapsody_radical.resources import PilotRequest

ODD = [
    "a b",
    "$HOME",
    "`date`",
    "$(date)",
    '"q"',
    "it's",
    "back\\slash",
    "new\nline",
    "",
    "*",
    "~",
    "ü",
    "!x",
    "a;b|c&d<e>f",
]


HERE = PilotRequest(description={}, slots=1, local=True, shared_files=True)


def described(task: ComputeTask, **more: Any) -> dict[str, Any]:
    check_fields(task, "radical", HERE)
    return describe_executable(task, "task.7", "radical", **more)


def in_a_script(description: dict[str, Any], folder: Path) -> str:
    """Run a description as RADICAL-Pilot's executor would write it down."""
    script = "".join(f'export {name}="{value}"\n' for name, value in description.get("environment", {}).items())
    script += f"{description['executable']} &\nwait $!\n"
    return subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, check=True, cwd=folder).stdout


def test_arguments_reach_the_program_as_the_user_wrote_them(tmp_path: Path) -> None:
    task = ComputeTask(executable="/usr/bin/printf", arguments=["%s\\0", *ODD])
    assert in_a_script(described(task), tmp_path).split("\0")[:-1] == ODD


def test_values_of_the_environment_reach_the_program_as_the_user_wrote_them(tmp_path: Path) -> None:
    task = ComputeTask(executable="printenv", arguments=["-0", "VALUE"], environment={"VALUE": "".join(ODD)})
    assert in_a_script(described(task), tmp_path) == "".join(ODD) + "\0"


def test_a_command_line_is_given_to_a_shell_and_its_arguments_are_quoted(tmp_path: Path) -> None:
    task = ComputeTask(executable="echo $((1 + 1))", arguments=["$HOME"], shell=True)
    assert in_a_script(described(task), tmp_path) == "2 $HOME\n"


def test_the_program_runs_in_its_own_folder_and_reads_its_own_input(tmp_path: Path) -> None:
    folder = tmp_path / "with a space"
    folder.mkdir()
    (tmp_path / "the input").write_text("from the file")
    task = ComputeTask(executable="sh", arguments=["-c", "pwd; cat"], cwd=folder)
    assert in_a_script(described(task, stdin=str(tmp_path / "the input")), tmp_path) == f"{folder}\nfrom the file"


def test_without_input_the_program_reads_nothing(tmp_path: Path) -> None:
    assert in_a_script(described(ComputeTask(executable="cat")), tmp_path) == ""


def test_resources_become_ranks_cores_gpus_and_megabytes_of_each_rank() -> None:
    wanted = Resources(ranks=4, cores_per_rank=2, gpus_per_rank=0.5, memory=10 * 2**30 + 1)
    fields = described(ComputeTask(executable="mpi", resources=wanted))
    assert {key: fields[key] for key in fields if "rank" in key} == {
        "ranks": 4,
        "cores_per_rank": 2,
        "gpus_per_rank": 0.5,
        "mem_per_rank": 2561,
    }


def test_a_unit_of_one_function_carries_the_resources_of_its_task() -> None:
    task = ComputeTask(
        function=print, resources=Resources(cores_per_rank=2), backend_options={"pre_exec": "module load x"}
    )
    fields = describe_unit(["python", "-m", "a b"], "task.7", task)
    assert fields["executable"] == "python -m 'a b'"
    assert (fields["cores_per_rank"], fields["pre_exec"]) == (2, ["module load x"])


def test_options_are_passed_on_in_radical_pilots_types() -> None:
    task = ComputeTask(
        executable="x", backend_options={"pre_exec": ("a", "b"), "tags": {"colocate": 1}, "sandbox": Path("/scratch")}
    )
    fields = described(task)
    assert (fields["pre_exec"], fields["tags"], fields["sandbox"]) == (["a", "b"], {"colocate": 1}, "/scratch")


def test_paths_and_tuples_inside_of_an_option_are_passed_on_as_text_and_lists() -> None:
    task = ComputeTask(executable="x", backend_options={"input_staging": ({"source": Path("a"), "target": ("b",)},)})
    assert described(task)["input_staging"] == [{"source": "a", "target": ["b"]}]


@pytest.mark.parametrize("value", [{"at": datetime(2026, 1, 1)}, {"key": {1, 2}}, {(1, 2): "x"}, {"a": "\udcff"}])
def test_an_option_that_cannot_travel_is_refused_with_a_remedy(value: dict[Any, Any]) -> None:
    task = ComputeTask(executable="x", backend_options={"metadata": value})
    with pytest.raises(UnsupportedError, match=f"{task.uid}.*metadata cannot travel.*it may hold text"):
        check(task, "radical")


def test_a_command_that_cannot_be_encoded_is_its_senders_error(tmp_path: Path) -> None:
    process = PilotProcess(HERE, tmp_path, "sid", Listener(event=print, look=bool, gone=print))
    with pytest.raises(TypeError):
        process.submit([{"metadata": object()}])


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (ComputeTask(executable="x", backend_options={"pre_exce": "y"}), "no 'pre_exce'; did you mean 'pre_exec'"),
        (ComputeTask(executable="x", backend_options={"pre_exec": 1}), "pre_exec must be str or list or tuple, not 1"),
        (ComputeTask(executable="x", backend_options={"arguments": ["y"]}), "arguments are a field of the task"),
        (ComputeTask(executable="x", backend_options={"cpu_threads": 2}), "called cores_per_rank now"),
        (ComputeTask(executable="x", backend_options={"mode": "task.exec"}), "RHAPSODY runs functions and executables"),
        (ComputeTask(executable="x", backend_options={"ranks": 2}, resources=Resources()), "ranks is given twice"),
        (ComputeTask(function=print, resources=Resources(ranks=2)), "cannot run in several ranks"),
        (ComputeTask(function=print, backend_options={"ranks": 2}), "cannot run in several ranks"),
        (ComputeTask(executable="x", backend_options={"ranks": 0}), "ranks must be at least 1, not 0"),
        (ComputeTask(executable="x", backend_options={"timeout": -1}), "timeout must be at least 0, not -1"),
        (ComputeTask(executable="x", backend_options={"timeout": math.nan}), "timeout must be at least 0, not nan"),
    ],
)
def test_what_radical_pilot_cannot_do_is_refused_with_a_remedy(task: ComputeTask, said: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        check(task, "radical")
    assert said in str(caught.value)
    assert task.uid in str(caught.value)


@pytest.mark.parametrize(
    "task",
    [
        ComputeTask(executable="x", arguments=["a\0b"]),
        ComputeTask(executable="x", arguments=["\udcff"]),
        ComputeTask(executable="x", environment={"A-B": "c"}),
        ComputeTask(executable="x", environment={"A": "\0"}),
        ComputeTask(executable="x", cwd="a\0b"),
        ComputeTask(executable="x", stdin="\udcff"),
    ],
)
def test_text_that_no_shell_takes_is_refused(task: ComputeTask) -> None:
    with pytest.raises(UnsupportedError, match=task.uid):
        described(task)


def test_escaped_text_means_itself_between_double_quotes() -> None:
    assert escape('a"$b`c\\d') == 'a\\"\\$b\\`c\\\\d'
