"""What scripts written for the package `rhapsody-py` import, line by line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LINES = (Path(__file__).parent / "imports.txt").read_text().splitlines()
ENGINES = {"Dask": "dask", "Dragon": "dragon", "Radical": "radical"}
# One interpreter for all lines, so that each is the first use of no name but those before it.
PROGRAM = """
import json, sys, warnings
results = []
for line in json.load(sys.stdin):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            exec(line, {})
        except Exception as error:
            results.append([repr(error), []])
        else:
            texts = [str(warning.message) for warning in caught if warning.category is DeprecationWarning]
            results.append(["", [text for text in texts if text.startswith("rhapsody")]])
print(json.dumps(results))
"""


def run(lines: list[str]) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(lines), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    results: list[Any] = json.loads(done.stdout)
    return results


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return dict(zip(LINES, run(LINES), strict=True))


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(
            line, marks=[pytest.mark.engine(engine) for word, engine in ENGINES.items() if f"{word}Execution" in line]
        )
        for line in LINES
    ],
)
def test_public_import_line(line: str, results: dict[str, Any]) -> None:
    """The line works."""
    assert results[line][0] == ""


def test_old_names_warn_once() -> None:
    """The first use of an old name says its new place; the next, and names that stayed, say nothing."""
    old = "from rhapsody.api.session import Session"
    first, second, new = run([old, old, "from rhapsody.api import Session, ComputeTask"])
    assert first == ["", ["rhapsody.api.session.Session is rhapsody.api.Session now"]]
    assert second == new == ["", []]


@pytest.mark.parametrize(
    "name",
    [
        "api.Session",
        "api.session.Session",
        "backends.ConcurrentExecutionBackend",
        "backends.execution.concurrent.ConcurrentExecutionBackend",
        "backends.constants.StateMapper",
        "logger.enable_logging",
        "telemetry.events.TaskCompleted",
    ],
)
def test_modules_are_there_after_one_import(name: str) -> None:
    """`import rhapsody` is enough to reach what is in its modules."""
    ((error, _),) = run([f"import rhapsody; rhapsody.{name}"])
    assert error == ""


def test_unknown_names_are_refused() -> None:
    """A name or module that never was is the ordinary error."""
    lines = ["from rhapsody import Sesion", "import rhapsody.api.nothing", "from rhapsody.backends.execution import X"]
    for error, _ in run(lines):
        assert "Error" in error
    names = ["from rhapsody.api.session import X", "from rhapsody.backends import NoBackend"]
    assert all(error.startswith("ImportError") for error, _ in run(names))


def test_old_names_are_the_new_ones() -> None:
    """An old name is the same object as the new one, not a copy."""
    program = (
        "import rhapsody.api, rhapsody.backends, rhapsody.backends.base, rhapsody.backends.execution.concurrent as c;"
        "from rhapsody.api.errors import TaskValidationError as old; assert old is rhapsody.api.InvalidTaskError;"
        "assert c.ConcurrentExecutionBackend is rhapsody.backends.ConcurrentExecutionBackend;"
        "assert rhapsody.backends.base.BaseBackend is rhapsody.backends.ExecutionBackend;"
        "assert rhapsody.get_backend is rhapsody.api.get_backend"
    )
    assert run([program])[0][0] == ""


def test_telemetry_names_what_it_needs() -> None:
    """Without OpenTelemetry the import of the manager, which workflow engines do, says what to install."""
    line = "import sys; sys.modules['opentelemetry'] = None; from rhapsody.telemetry.manager import TelemetryManager"
    ((error, _),) = run([line])
    assert error.startswith("ImportError")
    assert "pip install 'rhapsody-core[telemetry]'" in error
