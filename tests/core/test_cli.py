"""The commands `rhapsody`, `rhapsody backends`, `rhapsody demo` and `rhapsody doctor`, as a shell runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import click
import psutil
import pytest
from rhapsody.cli import COMMANDS, group
from rhapsody.cli.doctor import _each_once, environment_problems

Environment = dict[str, str]


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """The environment of a shell without settings of RHAPSODY's; modules and metadata in `tmp_path/site` count."""
    (tmp_path / "site").mkdir()
    (tmp_path / "here").mkdir()
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RHAPSODY_")}
    return plain | {"PYTHONPATH": str(tmp_path / "site"), "COLUMNS": "100", "TMPDIR": str(tmp_path)}


def rhapsody(*arguments: str, environment: Environment, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command in an empty folder, and look that it leaves no file in it."""
    here = Path(environment["TMPDIR"]) / "here"
    done = subprocess.run(
        [sys.executable, "-m", "rhapsody", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=here,
        timeout=100,
        stdin=subprocess.DEVNULL,
    )
    assert not list(here.iterdir())
    assert "Traceback" not in done.stdout + done.stderr
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def install(environment: Environment, name: str, body: str, version: str = "1.2.3") -> None:
    """Put a distribution with one backend, `name`, where Python finds it."""
    site = Path(environment["PYTHONPATH"])
    (site / f"{name}_backend.py").write_text(textwrap.dedent(body))
    metadata = site / f"{name}_distribution-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-distribution\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text(f"[rhapsody.backends]\n{name} = {name}_backend:Backend\n")


def listed(environment: Environment, *arguments: str) -> dict[str, dict[str, Any]]:
    done = rhapsody("backends", "--json", *arguments, environment=environment, check=False)
    return {row["name"]: row for row in json.loads(done.stdout)}


def examined(environment: Environment, *arguments: str) -> dict[str, Any]:
    done = rhapsody("doctor", "--json", *arguments, environment=environment, check=False)
    report: dict[str, Any] = json.loads(done.stdout)
    wrong = bool(report["environment"] or [row for row in report["backends"] if row["problem"]])
    assert done.returncode == wrong, "the exit status says whether something is wrong"
    return report


HEALTHY = """
    from rhapsody.backends.concurrent import ConcurrentExecutionBackend

    class Backend(ConcurrentExecutionBackend):
        def __init__(self, name="healthy"):
            super().__init__(name)
"""


# -- the group -----------------------------------------------------------------------------------------------------


def test_help_lists_every_command(environment: Environment) -> None:
    text = rhapsody("--help", environment=environment).stdout
    assert all(f"\n  {name} " in text for name in ("demo", "backends", "doctor"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_its_module_and_explains_itself(command: str) -> None:
    found = group.get_command(click.Context(group), command)
    assert found is not None
    assert len(found.get_help(click.Context(found)).splitlines()) > 5


def test_the_version_is_the_distribution_s(environment: Environment) -> None:
    import rhapsody as package

    assert rhapsody("--version", environment=environment).stdout.strip().endswith(package.__version__)


def test_an_unknown_command_is_an_error_in_a_sentence(environment: Environment) -> None:
    done = rhapsody("demonstrate", environment=environment, check=False)
    assert done.returncode == 2
    assert "No such command 'demonstrate'" in done.stderr


# -- backends ------------------------------------------------------------------------------------------------------


def test_backends_lists_the_local_backend_as_the_default(environment: Environment) -> None:
    row = listed(environment)["concurrent"]
    assert (row["status"], row["distribution"], row["default"]) == ("installed", "rhapsody-core", True)


def test_backends_marks_the_backend_that_the_environment_names(environment: Environment) -> None:
    install(environment, "healthy", HEALTHY)
    rows = listed(environment | {"RHAPSODY_BACKEND": "healthy"})
    assert [name for name, row in rows.items() if row["default"]] == ["healthy"]


def test_backends_tells_how_to_install_what_is_missing() -> None:
    from rhapsody.cli.backends import describe
    from rhapsody.discovery import BackendInfo

    missing = BackendInfo(
        name="dask", distribution="rhapsody-dask", installed=False, remedy="pip install rhapsody-dask"
    )
    row = describe(missing, check=True)
    assert (row["status"], row["note"]) == ("missing", "pip install rhapsody-dask")


def test_backends_imports_nothing_unless_asked_to_check(environment: Environment) -> None:
    install(environment, "loud", "raise RuntimeError('imported')")
    assert listed(environment)["loud"]["status"] == "installed"


def test_backends_check_gives_the_reason_of_a_broken_one_and_lists_the_others(environment: Environment) -> None:
    install(environment, "broken", "import a_module_that_nobody_has")
    done = rhapsody("backends", "--check", environment=environment, check=False)
    assert done.returncode == 1
    assert "a_module_that_nobody_has" in done.stdout
    assert "broken-distribution 1.2.3" in done.stdout
    assert listed(environment, "--check")["concurrent"]["status"] == "ready"


def test_backends_names_each_of_two_that_share_a_name_as_it_must_be_asked_for(environment: Environment) -> None:
    install(environment, "healthy", HEALTHY)
    other = Path(environment["PYTHONPATH"]) / "other-1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (other / "entry_points.txt").write_text("[rhapsody.backends]\nhealthy = healthy_backend:Backend\n")
    rows = listed(environment, "--check")
    assert rows["other:healthy"]["status"] == rows["healthy-distribution:healthy"]["status"] == "ready"


def test_backends_shows_a_table_to_a_person(environment: Environment) -> None:
    text = rhapsody("backends", environment=environment).stdout
    assert any(line.split()[:4] == ["concurrent", "*", "installed", "rhapsody-core"] for line in text.splitlines())


# -- demo ----------------------------------------------------------------------------------------------------------


def test_demo_surveys_the_standard_library_and_counts_its_tasks(environment: Environment) -> None:
    done = rhapsody("demo", "--tasks", "30", environment=environment)
    assert "tasks by state: 3" in done.stdout
    assert "DONE" in done.stdout
    assert "FAILED" not in done.stdout
    assert "tasks per second" in done.stdout
    assert "tasks have ended" in done.stdout, "progress is shown line by line where there is no terminal"
    assert "\x1b" not in done.stdout, "no control characters where there is no terminal"


def test_demo_reports_to_machines_what_it_found(environment: Environment) -> None:
    report = json.loads(rhapsody("demo", "--json", "-n", "40", environment=environment).stdout)
    assert report["states"] == {"DONE": 40 + len(report["packages"])}
    assert sum(package["files"] for package in report["packages"]) == 40
    for package in report["packages"]:
        assert 20 < package["gzip_size"] < package["size"] + 100
        assert package["lines"] > 0


def test_demo_goes_round_again_for_more_tasks_than_files() -> None:
    from rhapsody.cli.demo import _jobs

    jobs = _jobs({"one": ["a.py", "b.py"], "two": ["c.py"]}, 7)
    assert {package: len(tasks) for package, (_, tasks, _) in jobs.items()} == {"one": 5, "two": 2}
    assert jobs["one"][2].arguments[3:] == ["a.py", "b.py"], "a file is compressed once"


def test_demo_runs_on_processes_by_an_option_of_the_backend(environment: Environment) -> None:
    arguments = ("-b", "concurrent", "-o", "executor=processes", "-o", "max_workers=2", "-n", "20")
    report = json.loads(rhapsody("demo", "--json", *arguments, environment=environment).stdout)
    assert set(report["states"]) == {"DONE"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-b", "dsk"], "no backend is named 'dsk'; did you mean"),
        (["-o", "max_workers=none"], "max_workers must be a positive whole number"),
        (["-o", "colour=red"], "unexpected keyword argument 'colour'"),
        (["-o", "processes"], "is not KEY=VALUE"),
        (["-n", "0"], "not in the range"),
    ],
)
def test_demo_refuses_in_a_sentence(arguments: list[str], sentence: str, environment: Environment) -> None:
    done = rhapsody("demo", *arguments, environment=environment, check=False)
    assert done.returncode != 0
    assert sentence in done.stderr


def test_demo_fails_with_the_reasons_if_a_task_fails(environment: Environment) -> None:
    done = rhapsody("demo", "-n", "3", environment=environment | {"PATH": "/nowhere"}, check=False)
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    assert "failed task" in done.stdout


def test_demo_draws_a_live_bar_on_a_terminal(environment: Environment) -> None:
    import pty

    terminal, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rhapsody", "demo", "-n", "60"],
        stdin=side,
        stdout=side,
        stderr=side,
        env=environment | {"TERM": "xterm-256color"},
    )
    os.close(side)
    shown = b""
    try:
        while chunk := os.read(terminal, 65536):
            shown += chunk
    except OSError:
        pass  # the other side is closed: that is how a terminal ends
    assert process.wait(60) == 0
    os.close(terminal)
    assert "demo on concurrent" in shown.decode()
    assert "━" in shown.decode()


def test_interrupting_the_demo_ends_it_and_leaves_no_process(environment: Environment) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "rhapsody", "demo", "-n", "200000", "-o", "executor=processes"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    us = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    while len(us.children(recursive=True)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    family = us.children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


# -- the survey that the demo makes --------------------------------------------------------------------------------


def test_a_survey_counts_what_is_in_a_file(tmp_path: Path) -> None:
    from rhapsody.cli._survey import survey

    path = tmp_path / "sample.py"
    path.write_text(
        textwrap.dedent(
            """
            class Outer:
                def simple(self):
                    return 1

                def branching(self, items):
                    for item in items:
                        if item and item > 1 or item is None:
                            return [other for other in items if other]
                    return None
            """
        )
    )
    found = survey(str(path))
    assert (found.lines, found.functions, found.classes, found.depth) == (10, 2, 1, 4)
    # one, a loop, a condition, `and`, `or`, a comprehension and its condition
    assert (found.most_complex, found.complexity) == ("Outer.branching", 7)
    assert found.size == path.stat().st_size


def test_a_survey_of_deeply_nested_source_does_not_run_out_of_stack(tmp_path: Path) -> None:
    from rhapsody.cli._survey import survey

    path = tmp_path / "deep.py"
    path.write_text(
        "x = " + "+".join(["1"] * 900) + "\n" + "".join(f"{' ' * n}if x:\n" for n in range(80)) + " " * 80 + "pass\n"
    )
    assert survey(str(path)).depth == 80


# -- doctor --------------------------------------------------------------------------------------------------------


def test_doctor_runs_a_function_and_a_program_and_times_both(environment: Environment) -> None:
    report = examined(environment, "concurrent")
    (row,) = report["backends"]
    assert row["problem"] is None
    assert set(row["seconds"]) == {"load", "start", "function", "executable", "shutdown"}
    assert all(0 <= seconds < 60 for seconds in row["seconds"].values())


def test_doctor_shows_its_table_to_a_person(environment: Environment) -> None:
    text = rhapsody("doctor", "concurrent", environment=environment).stdout
    assert "the backend is well" in text
    assert any(line.startswith("concurrent ") and line.endswith("well") for line in text.splitlines())


def test_doctor_without_names_examines_what_is_installed_and_an_alias_once(environment: Environment) -> None:
    install(environment, "healthy", HEALTHY)
    with (Path(environment["PYTHONPATH"]) / "healthy_distribution-1.2.3.dist-info" / "entry_points.txt").open(
        "a"
    ) as file:
        file.write("robust = healthy_backend:Backend\n")
    path = list(sys.path)
    sys.path.insert(0, environment["PYTHONPATH"])
    try:
        names = _each_once()
    finally:
        sys.path[:] = path
    assert "healthy" in names
    assert "robust" not in names
    assert "concurrent" in names


SICK = {
    "start": (
        """
        class Backend(Healthy):
            @hookimpl
            async def rhapsody_init(self, context):
                raise RuntimeError("the licence server is down")
        """,
        "the licence server is down",
    ),
    "exit": ("import os\nos._exit(3)", "its process ended with exit code 3"),
    "killed": ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "its process ended with signal SIGKILL"),
    "wrong": (
        """
        class Backend(Healthy):
            @hookimpl
            def rhapsody_submit(self, batch):
                outcomes = [Outcome(task.uid, TaskState.DONE, return_value=(41, "3.0")) for task in batch.tasks]
                self._context.events.put(outcomes)
        """,
        "a function returned 41, not 42",
    ),
    "program": (
        """
        class Backend(Healthy):
            @hookimpl
            def rhapsody_submit(self, batch):
                if batch.tasks[0].function is not None:
                    return super().rhapsody_submit(batch)
                outcomes = [Outcome(task.uid, TaskState.DONE, stdout="", exit_code=0) for task in batch.tasks]
                self._context.events.put(outcomes)
        """,
        "`echo rhapsody` gave ''",
    ),
    "old": ("class Backend(Healthy):\n    interface_version = 0", "upgrade its distribution"),
    "nothing": ("Backend = None", "is not a subclass of"),
    "missing": ("import a_module_that_nobody_has", "reinstall or upgrade it"),
    "shutdown": (
        """
        class Backend(Healthy):
            @hookimpl
            async def rhapsody_shutdown(self):
                await super().rhapsody_shutdown()
                raise OSError("a socket is left")
        """,
        "a socket is left",
    ),
}  # fmt: skip

PREAMBLE = """
from rhapsody.backends.concurrent import ConcurrentExecutionBackend
from rhapsody.plugin import Outcome, TaskState, hookimpl

class Healthy(ConcurrentExecutionBackend):
    def __init__(self, name="sick"):
        super().__init__(name)

"""


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the doctor says of all of them, and of a healthy one after them."""
    folder = tmp_path_factory.mktemp("ward")
    for name in ("site", "here"):
        (folder / name).mkdir()
    environment = dict(os.environ) | {"PYTHONPATH": str(folder / "site"), "TMPDIR": str(folder)}
    for name, (body, _) in SICK.items():
        install(environment, name, PREAMBLE + textwrap.dedent(body))
    return {row["name"]: row for row in examined(environment, *SICK, "concurrent")["backends"]}


@pytest.mark.parametrize("sickness", SICK)
def test_doctor_says_what_is_wrong(sickness: str, ward: dict[str, dict[str, Any]]) -> None:
    assert SICK[sickness][1] in f"{ward[sickness]['problem']}\n{ward[sickness]['remedy']}"


def test_doctor_examines_the_others_whatever_one_of_them_does(ward: dict[str, dict[str, Any]]) -> None:
    assert ward["concurrent"]["problem"] is None


def test_doctor_ends_a_backend_that_hangs(environment: Environment) -> None:
    install(environment, "slow", "import time\ntime.sleep(1000)")
    began = time.monotonic()
    (row,) = examined(environment, "slow", "--timeout", "3")["backends"]
    assert "did not come to its end within 3 s (during: load)" in row["problem"]
    assert time.monotonic() - began < 60
    assert not [process for process in psutil.process_iter() if "slow" in _arguments(process)]


def _arguments(process: psutil.Process) -> list[str]:
    try:
        arguments: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return arguments if "rhapsody.cli._examine" in arguments else []


def test_doctor_tells_how_to_get_a_backend_that_is_missing_or_misspelt(environment: Environment) -> None:
    missing, misspelt = examined(environment | {"RHAPSODY_DISABLE_BACKENDS": "dask"}, "dask", "concurent")["backends"]
    assert "RHAPSODY_DISABLE_BACKENDS" in missing["problem"]
    assert "did you mean concurrent" in misspelt["problem"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"RHAPSODY_LOG_LEVEL": "loud"}, "it must be one of DEBUG, INFO"),
        ({"RHAPSODY_BACKEND": "abacus"}, "no such backend is installed"),
        ({"RHAPSODY_WORK_DIR": "/dev/null/folder"}, "set RHAPSODY_WORK_DIR to one"),
    ],
)
def test_doctor_finds_settings_that_make_no_sense(
    settings: Environment, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not list(environment_problems())
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    (found,) = environment_problems()
    assert sentence in f"{found['problem']} {found['remedy']}"


def test_doctor_fails_for_a_setting_that_makes_no_sense(environment: Environment) -> None:
    report = examined(environment | {"RHAPSODY_BACKEND": "abacus"}, "concurrent")
    assert "abacus" in report["environment"][0]["problem"]


def test_doctor_shows_the_log_to_whoever_asks_for_it(environment: Environment) -> None:
    done = rhapsody("doctor", "concurrent", environment=environment | {"RHAPSODY_LOG_LEVEL": "debug"})
    assert "backend_starting" in done.stderr
