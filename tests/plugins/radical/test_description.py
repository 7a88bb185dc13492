"""The translation of a task to RADICAL-Pilot's TaskDescription."""

from __future__ import annotations

import importlib.util
import math
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import ComputeTask, Resources
from rhapsody.errors import BackendStartError, UnsupportedError
from rhapsody_radical.description import check, check_fields, check_size, describe_batch, describe_executable, escape
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


def test_arguments_arrive_verbatim(tmp_path: Path) -> None:
    """Arguments reach the executable as the user wrote them."""
    task = ComputeTask(executable="/usr/bin/printf", arguments=["%s\\0", *ODD])
    assert in_a_script(described(task), tmp_path).split("\0")[:-1] == ODD


def test_environment_arrives_verbatim(tmp_path: Path) -> None:
    """Values of the environment reach the executable as the user wrote them."""
    task = ComputeTask(executable="printenv", arguments=["-0", "VALUE"], environment={"VALUE": "".join(ODD)})
    assert in_a_script(described(task), tmp_path) == "".join(ODD) + "\0"


def test_shell_command_quotes_arguments(tmp_path: Path) -> None:
    """A command line is given to a shell, and its arguments are quoted."""
    task = ComputeTask(executable="echo $((1 + 1))", arguments=["$HOME"], shell=True)
    assert in_a_script(described(task), tmp_path) == "2 $HOME\n"


def test_folder_and_input(tmp_path: Path) -> None:
    """The executable runs in its own folder and reads its own input."""
    folder = tmp_path / "with a space"
    folder.mkdir()
    (tmp_path / "the input").write_text("from the file")
    task = ComputeTask(executable="sh", arguments=["-c", "pwd; cat"], cwd=folder)
    assert in_a_script(described(task, stdin=str(tmp_path / "the input")), tmp_path) == f"{folder}\nfrom the file"


def test_no_input_reads_nothing(tmp_path: Path) -> None:
    """Without input the executable reads nothing."""
    assert in_a_script(described(ComputeTask(executable="cat")), tmp_path) == ""


def test_resources_become_ranks() -> None:
    """Resources become ranks, cores, GPUs and megabytes of each rank."""
    wanted = Resources(ranks=4, cores_per_rank=2, gpus_per_rank=0.5, memory=10 * 2**30 + 1)
    fields = described(ComputeTask(executable="mpi", resources=wanted))
    assert {key: fields[key] for key in fields if "rank" in key} == {
        "ranks": 4,
        "cores_per_rank": 2,
        "gpus_per_rank": 0.5,
        "mem_per_rank": 2561,
    }


def test_single_function_keeps_resources() -> None:
    """A batch of one function carries the resources of its task."""
    task = ComputeTask(
        function=print, resources=Resources(cores_per_rank=2), backend_options={"pre_exec": "module load x"}
    )
    fields = describe_batch(["python", "-m", "a b"], "task.7", task)
    assert fields["executable"] == "python -m 'a b'"
    assert (fields["cores_per_rank"], fields["pre_exec"]) == (2, ["module load x"])


def test_options_keep_radicals_types() -> None:
    """Options are passed on in RADICAL-Pilot's types."""
    task = ComputeTask(
        executable="x", backend_options={"pre_exec": ("a", "b"), "tags": {"colocate": 1}, "sandbox": Path("/scratch")}
    )
    fields = described(task)
    assert (fields["pre_exec"], fields["tags"], fields["sandbox"]) == (["a", "b"], {"colocate": 1}, "/scratch")


def test_nested_paths_become_text() -> None:
    """Paths and tuples inside an option become text and lists."""
    task = ComputeTask(executable="x", backend_options={"input_staging": ({"source": Path("a"), "target": ("b",)},)})
    assert described(task)["input_staging"] == [{"source": "a", "target": ["b"]}]


@pytest.mark.parametrize("value", [{"at": datetime(2026, 1, 1)}, {"key": {1, 2}}, {(1, 2): "x"}, {"a": "\udcff"}])
def test_unencodable_option_is_refused(value: dict[Any, Any]) -> None:
    """An option that cannot travel is refused with a remedy."""
    task = ComputeTask(executable="x", backend_options={"metadata": value})
    with pytest.raises(UnsupportedError, match=f"{task.uid}.*metadata cannot travel.*it may hold text"):
        check(task, "radical")


def test_unencodable_command_raises(tmp_path: Path) -> None:
    """A command that cannot be encoded is the sender's error."""
    process = PilotProcess(HERE, tmp_path, "sid", Listener(event=print, poll=bool, gone=print))
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
def test_unsupported_request_is_refused(task: ComputeTask, said: str) -> None:
    """What RADICAL-Pilot cannot do is refused with a remedy."""
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
def test_text_for_no_shell_is_refused(task: ComputeTask) -> None:
    """Text that no shell takes is refused."""
    with pytest.raises(UnsupportedError, match=task.uid):
        described(task)


def test_escaped_text_is_literal() -> None:
    """Escaped text is literal between double quotes."""
    assert escape('a"$b`c\\d') == 'a\\"\\$b\\`c\\\\d'


def test_missing_netifaces_names_both_cures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start without netifaces says how to install it with and without a compiler."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendStartError, match=r"pip install netifaces2 brings it as a wheel.*C compiler"):
        PilotProcess(HERE, tmp_path, "sid", Listener(event=print, poll=bool, gone=print)).start()


def test_memory_beyond_a_node_is_refused() -> None:
    """A rank that wants more memory than a node has would wait for good, and is refused; its share of it is not."""
    pilot = PilotRequest(description={}, slots=4, local=False, shared_files=True, node_memory=4096)
    check_size(ComputeTask(executable="x", resources=Resources(ranks=2, memory="8 GiB")), "radical", pilot)
    with pytest.raises(UnsupportedError, match="5120 MB of memory for a rank, and a node of the pilot has 4096"):
        check_size(ComputeTask(executable="x", resources=Resources(memory="5 GiB")), "radical", pilot)


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["echo", "a", "&&", "echo", "b  c", "|", "tr", "b", "B"], "a\nB  c\n"),
        (["python3", "-c", "print(1 and '$HOME')"], "$HOME\n"),
        (["echo", "a", "2>&1", ">", "/dev/null", ";", "echo", "b"], "b\n"),
    ],
)
def test_split_words_in_a_shell(words: list[str], printed: str) -> None:
    """Words that an engine has split reach the shell as one line: operators work, and the rest arrives as written."""
    options: Any = {"task_backend_specific_kwargs": {"shell": True}}
    task = ComputeTask(words[0], arguments=words[1:], **options)
    done = subprocess.run(["bash", "-c", described(task)["executable"]], capture_output=True, text=True, check=True)
    assert done.stdout == printed
