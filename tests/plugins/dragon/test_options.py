"""From a task to Dragon's words."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from rhapsody.api import ComputeTask, Resources
from rhapsody.errors import UnsupportedError
from rhapsody_dragon.options import KEEP, check, launches, output_of, ranks_of
from rhapsody_dragon.programs import Gate, Program

KNOWN = frozenset({"timeout", "pmi", "process_template", "process_templates"})


def plan(task: ComputeTask, folder: Path) -> list:
    return launches(task, str(folder), stdin="/in", stdout="/out", stderr="/err", marker={"MARK": "1"})


def test_a_program_is_found_on_the_path_and_keeps_its_arguments(tmp_path: Path) -> None:
    (launch,) = plan(ComputeTask(executable="sh", arguments=["-c", "a b", 3]), tmp_path)
    assert launch.processes == 1
    assert launch.args[2:] == ("/in", "/out", "/err", launch.args[5], "-c", "a b", "3")
    assert Path(launch.args[5]).name == "sh"
    assert Path(launch.args[5]).is_absolute()


def test_a_relative_program_is_found_in_the_folder_of_the_task(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("#!/bin/sh\n")
    (tmp_path / "run").chmod(0o755)
    (launch,) = plan(ComputeTask(executable="./run", cwd=tmp_path), Path("/"))
    assert launch.args[5] == str(tmp_path / "run")
    assert launch.keywords["cwd"] == str(tmp_path)


def test_a_shell_command_is_one_line_whose_arguments_are_quoted(tmp_path: Path) -> None:
    (launch,) = plan(ComputeTask(executable="echo $X", arguments=["a b"], shell=True), tmp_path)
    assert launch.args[5:] == ("/bin/sh", "-c", "echo $X 'a b'")


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no_such_program"):
        plan(ComputeTask(executable="no_such_program"), tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        plan(ComputeTask(executable="sh", cwd=tmp_path / "nowhere"), tmp_path)


def test_variables_of_the_task_win_over_the_users_and_the_marker_over_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A", "user")
    monkeypatch.setenv("B", "user")
    (launch,) = plan(ComputeTask(executable="sh", environment={"A": "task", "MARK": "0"}), tmp_path)
    assert (launch.keywords["env"]["A"], launch.keywords["env"]["B"], launch.keywords["env"]["MARK"]) == (
        "task",
        "user",
        "1",
    )


def test_ranks_make_one_job_of_several_processes(tmp_path: Path) -> None:
    task = ComputeTask(executable="sh", resources=Resources(ranks=3))
    assert ranks_of(task) == 3
    assert [launch.processes for launch in plan(task, tmp_path)] == [3]


def test_process_templates_make_one_job_of_different_programs(tmp_path: Path) -> None:
    task = ComputeTask(
        executable="sh",
        arguments=["own"],
        backend_options={
            "process_templates": [(1, {"target": "cat", "args": ["x"], "cwd": str(tmp_path)}), (2, {"env": {"A": "1"}})]
        },
    )
    first, second = plan(task, Path("/"))
    assert ranks_of(task) == 3
    assert (first.processes, Path(first.args[5]).name, first.args[6:]) == (1, "cat", ("x",))
    assert (second.processes, Path(second.args[5]).name, second.args[6:]) == (2, "sh", ("own",))
    assert first.keywords["cwd"] == str(tmp_path)
    assert second.keywords["env"]["A"] == "1"


def test_a_program_behind_a_gate_begins_when_that_opens_and_reads_its_own_input(tmp_path: Path) -> None:
    task = ComputeTask(executable="sh", arguments=["-c", "cat; echo $0", "last word"], stdin="in ")
    program = Program(task, "session", tmp_path)
    with Gate(tmp_path / "gate") as gate:
        (launch,) = program.plan(str(tmp_path), gate)
        process = subprocess.Popen([launch.target, *launch.args])
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.3)
        gate.open()
        process.wait(timeout=30)
    assert program.outcome(process.returncode, None, None).stdout == "in last word\n"
    assert not (tmp_path / "gate").exists()


def test_a_program_whose_gate_goes_away_never_begins(tmp_path: Path) -> None:
    program = Program(ComputeTask(executable="touch", arguments=[tmp_path / "ran"]), "session", tmp_path)
    with Gate(tmp_path / "gate") as gate:
        (launch,) = program.plan(str(tmp_path), gate)
        process = subprocess.Popen([launch.target, *launch.args])
        time.sleep(0.3)  # it has opened the pipe
    assert process.wait(timeout=30) != 0
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"backend_options": {"colour": 1}}, "colour"),
        ({"backend_options": {"timeout": -1}}, "timeout"),
        ({"backend_options": {"pmi": "telepathy"}}, "telepathy"),
        ({"backend_options": {"process_template": {"colour": 1}}}, "colour"),
        ({"backend_options": {"process_template": {"target": "x"}}}, "target"),
        ({"backend_options": {"process_templates": [(0, {})]}}, "process_templates"),
        ({"backend_options": {"process_template": {}, "process_templates": [(1, {})]}}, "at once"),
        ({"resources": Resources(cores_per_rank=2)}, "cores_per_rank"),
        ({"resources": Resources(gpus_per_rank=1)}, "GPUs"),
        ({"resources": Resources(memory=1)}, "memory"),
    ],
)
def test_what_dragon_cannot_be_told_is_refused_by_name(fields: dict, named: str) -> None:
    with pytest.raises(UnsupportedError, match=named) as refused:
        check(ComputeTask(executable="sh", uid="mine", **fields), "dragon", KNOWN)
    assert "mine" in str(refused.value)
    assert "'dragon'" in str(refused.value)


def test_a_function_of_several_ranks_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="one process"):
        check(ComputeTask(function=print, resources=Resources(ranks=2)), "dragon", KNOWN)


def test_a_long_output_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    file = tmp_path / "out"
    file.write_bytes(b"begin" + b"." * (2 * KEEP) + b"end")
    text = output_of(file)
    assert text.startswith("begin")
    assert text.endswith("end")
    assert "8 bytes left out" in text


def test_an_output_of_medium_length_is_kept_whole(tmp_path: Path) -> None:
    file = tmp_path / "out"
    file.write_bytes(b"x" * (KEEP + 100))
    assert len(output_of(file)) == KEEP + 100


def test_importing_a_backend_imports_nothing_of_dragon() -> None:
    import subprocess

    code = (
        "import sys, rhapsody_dragon.v1, rhapsody_dragon.v2, rhapsody_dragon.v3;"
        "assert not any(name == 'dragon' or name.startswith('dragon.') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
