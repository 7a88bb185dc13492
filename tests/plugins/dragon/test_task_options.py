"""From a task to Dragon's words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import ComputeTask, Resources
from rhapsody.errors import UnsupportedError
from rhapsody.worker import encode_frame, frames
from rhapsody_dragon.task_options import KEEP, JobFiles, Launch, check, launches, output_of, ranks_of

KNOWN = frozenset({"timeout", "pmi", "process_template", "process_templates"})


def plan(task: ComputeTask, folder: Path) -> list[Launch]:
    return launches(task, str(folder), ("/in", "/out", "/err"), {"MARK": "1"})


def test_an_executable_is_found_on_the_path(tmp_path: Path) -> None:
    """Its arguments are passed on as they are."""
    (launch,) = plan(ComputeTask(executable="sh", arguments=["-c", "a b", 3]), tmp_path)
    assert launch.processes == 1
    assert launch.args[2:] == ("/in", "/out", "/err", launch.args[5], "-c", "a b", "3")
    assert Path(launch.args[5]).name == "sh"
    assert Path(launch.args[5]).is_absolute()


def test_a_relative_path_is_of_the_task(tmp_path: Path) -> None:
    """A relative path begins in the folder in which the task runs."""
    (tmp_path / "run").write_text("#!/bin/sh\n")
    (tmp_path / "run").chmod(0o755)
    (launch,) = plan(ComputeTask(executable="./run", cwd=tmp_path), Path("/"))
    assert launch.args[5] == str(tmp_path / "run")
    assert launch.keywords["cwd"] == str(tmp_path)


def test_a_shell_command_is_one_line(tmp_path: Path) -> None:
    """The arguments of a shell command are quoted."""
    (launch,) = plan(ComputeTask(executable="echo $X", arguments=["a b"], shell=True), tmp_path)
    assert launch.args[5:] == ("/bin/sh", "-c", "echo $X 'a b'")


def test_a_missing_executable_is_named(tmp_path: Path) -> None:
    """An executable that is not there is an error with its name."""
    with pytest.raises(FileNotFoundError, match="no_such_program"):
        plan(ComputeTask(executable="no_such_program"), tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """A folder that is not there is an error with its name."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        plan(ComputeTask(executable="sh", cwd=tmp_path / "nowhere"), tmp_path)


def test_variables_of_the_task_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of the task win over the user's, and the marker over both."""
    monkeypatch.setenv("A", "user")
    monkeypatch.setenv("B", "user")
    (launch,) = plan(ComputeTask(executable="sh", environment={"A": "task", "MARK": "0"}), tmp_path)
    assert (launch.keywords["env"]["A"], launch.keywords["env"]["B"], launch.keywords["env"]["MARK"]) == (
        "task",
        "user",
        "1",
    )


def test_ranks_make_one_job(tmp_path: Path) -> None:
    """Several ranks are several processes of one job."""
    task = ComputeTask(executable="sh", resources=Resources(ranks=3))
    assert ranks_of(task) == 3
    assert [launch.processes for launch in plan(task, tmp_path)] == [3]


def test_templates_make_one_job(tmp_path: Path) -> None:
    """Process templates are one job of different executables."""
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


def test_files_carry_input_and_output(tmp_path: Path) -> None:
    """An executable reads its own input, its outcome has what it wrote, and its files are gone afterwards."""
    task = ComputeTask(executable="sh", arguments=["-c", "cat; echo $0; echo oh >&2; exit 3", "last word"], stdin="in ")
    files = JobFiles(task, tmp_path, "1")
    (launch,) = files.plan(str(tmp_path), {"MARK": "1"})
    code = subprocess.run([launch.target, *launch.args], check=False).returncode
    outcome = files.outcome(code, None, None)
    files.remove()
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (3, "in last word\n", "oh\n")
    assert "oh" in str(outcome.exception)
    assert not list(tmp_path.iterdir())


def test_a_function_is_called_in_a_process(tmp_path: Path) -> None:
    """Its process has the user's path behind its own, and leaves whole frames."""
    files = JobFiles(ComputeTask(function=abs, args=(-1,)), tmp_path, "1")
    (launch,) = files.plan(str(tmp_path), {"MARK": "1"}, b"no batch")
    assert launch.keywords["env"]["DRAGON_PATCH_MP"] == ""
    assert json.loads(launch.args[-1]) == sys.path
    (tmp_path / "1.frames").write_bytes(encode_frame(("a", "value", 1, 0.0, 0.0, "")) + b"\0\0")
    assert len(list(frames(files.frames()))) == 1


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
        ({"resources": Resources(memory=1)}, "memory"),
    ],
)
def test_unknown_options_are_refused(fields: dict[str, Any], named: str) -> None:
    """What Dragon does not offer is refused by its name."""
    with pytest.raises(UnsupportedError, match=named) as refused:
        check(ComputeTask(executable="sh", uid="mine", **fields), "dragon", KNOWN)
    assert "mine" in str(refused.value)
    assert "'dragon'" in str(refused.value)


def test_ranks_of_a_function_are_refused() -> None:
    """A function runs in one process."""
    with pytest.raises(UnsupportedError, match="one process"):
        check(ComputeTask(function=print, resources=Resources(ranks=2)), "dragon", KNOWN)


def test_a_long_output_keeps_both_ends(tmp_path: Path) -> None:
    """A long output keeps its beginning and its end."""
    file = tmp_path / "out"
    file.write_bytes(b"begin" + b"." * (2 * KEEP) + b"end")
    text = output_of(file)
    assert text.startswith("begin")
    assert text.endswith("end")
    assert "8 bytes left out" in text


def test_a_medium_output_is_kept_whole(tmp_path: Path) -> None:
    """An output of which the two ends overlap is kept whole."""
    file = tmp_path / "out"
    file.write_bytes(b"x" * (KEEP + 100))
    assert len(output_of(file)) == KEEP + 100


def test_import_does_not_import_dragon() -> None:
    """Importing a backend imports nothing of Dragon."""
    import subprocess

    code = (
        "import sys, rhapsody_dragon.v1, rhapsody_dragon.v2, rhapsody_dragon.v3;"
        "assert not any(name == 'dragon' or name.startswith('dragon.') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
