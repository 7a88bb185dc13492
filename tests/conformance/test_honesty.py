"""The suite cannot be weakened unseen, and its report says what was proven and what was not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rhapsody.plugin import Outcome, Returned, Started, TaskState
from rhapsody.testing import BackendConformanceTests
from rhapsody.testing import report as reports
from rhapsody.testing.ledger import Ledger
from rhapsody.testing.watch import processes, started_since

EXCEPTIONS = "test_function_fails_with_its_exception"


def test_removing_a_test_is_refused() -> None:
    """A subclass of the suite that removes a test is a TypeError that names both."""
    with pytest.raises(TypeError, match=f"Removing removes or replaces {EXCEPTIONS}"):
        type("Removing", (BackendConformanceTests,), {EXCEPTIONS: None})


def test_replacing_a_test_is_refused() -> None:
    """A subclass of the suite that replaces a test is a TypeError."""
    with pytest.raises(TypeError, match=EXCEPTIONS):
        type("Replacing", (BackendConformanceTests,), {EXCEPTIONS: lambda self: None})


def test_replacing_by_mixin_is_refused() -> None:
    """A mixin cannot replace a test of the suite either."""
    mixin = type("Mixin", (), {EXCEPTIONS: lambda self: None})
    with pytest.raises(TypeError, match=EXCEPTIONS):
        type("Mixed", (mixin, BackendConformanceTests), {})


def test_xfail_needs_a_reason() -> None:
    """A replacement marked xfail without a reason is refused."""

    @pytest.mark.xfail
    def replacement(self: object) -> None: ...

    with pytest.raises(TypeError, match=EXCEPTIONS):
        type("Silent", (BackendConformanceTests,), {EXCEPTIONS: replacement})


def test_xfail_with_reason_is_accepted() -> None:
    """A replacement marked xfail with a reason is accepted."""

    @pytest.mark.xfail(reason="the engine has no exceptions")
    def replacement(self: object) -> None: ...

    type("Honest", (BackendConformanceTests,), {EXCEPTIONS: replacement})


AUTHORS_FILE = f"""
import pytest
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.testing import BackendConformanceTests

@pytest.fixture(scope="class")
def new_backend():
    return lambda: ConcurrentExecutionBackend(max_workers=2)

class TestMine(BackendConformanceTests):
    title = "mine"

    @pytest.mark.xfail(reason="the engine has no exceptions", strict=True)
    def {EXCEPTIONS}(self, rhapsody_rig):
        super().{EXCEPTIONS}(rhapsody_rig)
        raise AssertionError("none")
"""


def test_report_has_all_four_results(tmp_path: Path) -> None:
    """The report distinguishes proven, refused, known failures and what was not tried."""
    (tmp_path / "test_mine.py").write_text(AUTHORS_FILE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not rhapsody_restart"]
    command += ["--conformance-report", "report.json", "test_mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RHAPSODY conformance of mine" in done.stdout
    assert "| executables | proven | " in done.stdout
    rows = {row["what"]: row for row in json.loads((tmp_path / "report.json").read_text())["mine"]}
    assert rows["executables"]["result"] == "proven"
    assert rows["stops a running function"]["result"] == "refused"
    assert rows["exceptions"] == {
        "what": "exceptions",
        "result": "known failure",
        "tests": "6",
        "detail": "the engine has no exceptions",
    }
    assert rows["survives the loss of a worker"]["result"] == "not tried"


def test_report_keeps_other_backends(tmp_path: Path) -> None:
    """Writing a backend's results keeps those of other backends in the file."""
    path = tmp_path / "report.json"
    reports.write(path, {"other": [{"what": "functions", "result": "proven"}]})
    reports.write(path, {"mine": [{"what": "functions", "result": "FAILED"}]})
    assert json.loads(path.read_text()).keys() == {"other", "mine"}


def test_pytest_plugin_imports_little() -> None:
    """The pytest plugin imports nothing beside itself and its packages."""
    code = (
        "import pytest, sys; before = set(sys.modules); import rhapsody.testing.plugin; "
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["rhapsody", "rhapsody.testing", "rhapsody.testing.plugin"]


class _Batch:
    def __init__(self, *uids: str) -> None:
        self.tasks = [type("Task", (), {"uid": uid}) for uid in uids]


def _ledger(*uids: str) -> Ledger:
    ledger = Ledger()
    ledger.handed(_Batch(*uids))  # type: ignore[arg-type]
    return ledger


def test_ledger_accepts_a_sound_life() -> None:
    """A task that starts, comes back or ends once is no fault."""
    ledger = _ledger("a", "b")
    ledger.reported([Started("a", 0.0), Returned(["b"]), Outcome("a", TaskState.DONE)])
    assert not ledger.faults()
    assert not ledger.held


@pytest.mark.parametrize(
    ("events", "fault"),
    [
        ([Outcome("x", TaskState.DONE)], "which the backend does not hold"),
        ([Outcome("a", TaskState.DONE), Outcome("a", TaskState.DONE)], "which had ended DONE before"),
        ([Started("a", 0.0), Started("a", 0.0)], "reported twice"),
        ([Outcome("a", TaskState.DONE), Started("a", 0.0)], "before the task's Outcome"),
        ([Started("a", 0.0), Returned(["a"])], "it would run twice"),
        ([Returned(["x"])], "which the backend does not hold"),
        ([Outcome("a", TaskState.RUNNING)], "must be DONE, FAILED or CANCELED"),
        ([Outcome("a", TaskState.FAILED)], "has no exception"),
        ([Outcome("a", TaskState.DONE, exception=ValueError())], "is it FAILED?"),
        (["a"], "which is no event"),
    ],
)
def test_ledger_reports_each_fault(events: list[Any], fault: str) -> None:
    """Each report that breaks the contract is a fault, named once."""
    ledger = _ledger("a")
    ledger.reported(events)
    assert fault in ledger.faults()
    assert not ledger.faults(), "reported once"


def test_engine_that_goes_on_leaves_nothing() -> None:
    """What an engine that runs already starts now is no leftover of another; what has no such parent is one."""
    with subprocess.Popen(["sh", "-c", "while :; do sleep 0.01; done"]) as engine:
        try:
            before = processes()
            assert engine.pid in before
            assert [started_since(before) for _ in range(20)] == [{}] * 20
            with subprocess.Popen(["sleep", "60"]) as other:
                assert started_since(before) == {other.pid: "sleep 60"}
                other.kill()
        finally:
            engine.kill()


def test_row_names_tests_left_out() -> None:
    """A row of the table says how many of its tests were not run."""
    about = {"backend": "mine", "proves": "functions", "refuses": False, "test": "test_one"}
    tests = {"functions": {"test_one", "test_two"}, "executables": {"test_three"}}
    functions, executables = reports.summarize([(about, "passed", "")], tests)["mine"]
    assert (functions["result"], functions["detail"]) == ("proven in part", "1 of 2 tests were not run")
    assert (executables["result"], executables["detail"]) == ("not tried", "its tests were not run")


def test_row_names_fewer_tasks() -> None:
    """The row of 10,000 tasks names the number where there were fewer."""
    about = {"backend": "mine", "proves": "back-pressure: 10,000 tasks", "refuses": False, "test": "test_one"}
    tests = {"back-pressure: 10,000 tasks": {"test_one"}}
    (few,) = reports.summarize([({**about, "many": 40}, "passed", "")], tests)["mine"]
    (all_of_them,) = reports.summarize([({**about, "many": 10_000}, "passed", "")], tests)["mine"]
    assert (few["result"], few["detail"]) == ("proven", "with 40 tasks")
    assert (all_of_them["result"], all_of_them["detail"]) == ("proven", "")
