"""The translations for engines that run executables by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import ComputeTask, InvalidBackendError, TaskExecutionError
from rhapsody.plugin import command_of, outcome_of


def task(**fields: Any) -> ComputeTask:
    return ComputeTask(**{"executable": "prog", "uid": "a/b", **fields})


def test_arguments_are_text() -> None:
    """Each argument is one text, whatever it holds; the shell's line quotes them, and not the command."""
    arguments = [3, "two words", "", Path("x")]
    assert command_of(task(arguments=arguments)).plain_argv == ("prog", "3", "two words", "", "x")
    line = command_of(task(executable="a | b", arguments=["it's"], shell=True))
    assert line.plain_argv == ("/bin/sh", "-c", "a | b 'it'\"'\"'s'")


def test_captured_output_needs_a_sandbox(tmp_path: Path) -> None:
    """Captured output goes to files in the sandbox, which must be given."""
    command = command_of(task(capture_stdio=True), tmp_path)
    assert (command.stdout_path, command.stderr_path) == (str(tmp_path / "a%2Fb.out"), str(tmp_path / "a%2Fb.err"))
    with pytest.raises(InvalidBackendError, match=r"command_of\(task, context.sandbox\)"):
        command_of(task(capture_stdio=True))


def test_function_is_no_command() -> None:
    """A function task has no command."""
    with pytest.raises(InvalidBackendError, match="is no executable"):
        command_of(ComputeTask(function=int))


def test_exit_code_0_is_done() -> None:
    """An exit code of 0 is DONE, with the streams as text."""
    outcome = outcome_of(task(), 0, b"out \xff", "err", native_id="7")
    assert (outcome.state, outcome.exit_code, outcome.stdout, outcome.stderr) == ("DONE", 0, "out \ufffd", "err")
    assert (outcome.exception, outcome.native_id) == (None, "7")


@pytest.mark.parametrize(
    ("exit_code", "problem", "text"),
    [
        (3, "", "exit code 3"),
        (-9, "", "ended by signal 9"),
        (None, "", "could not start 'prog'"),
        (None, "no cwd", "no cwd"),
    ],
)
def test_other_exit_codes_fail(exit_code: int | None, problem: str, text: str) -> None:
    """Another exit code, a signal, and an executable that did not start are failures that say so."""
    outcome = outcome_of(task(), exit_code, "", "the reason", problem=problem)
    assert outcome.state == "FAILED"
    assert isinstance(outcome.exception, TaskExecutionError)
    assert text in str(outcome.exception)
    assert "the reason" in str(outcome.exception)


def test_stopped_is_canceled() -> None:
    """What was stopped is CANCELED, whatever its exit code."""
    assert outcome_of(task(), -15, stopped=True).state == "CANCELED"


def test_output_is_bounded() -> None:
    """Of more than 16 MiB the beginning and the end are kept."""
    out = outcome_of(task(), 0, b"a" * 9_000_000 + b"b" * 9_000_000).stdout
    assert out is not None
    assert len(out) < 17_000_000
    assert (out[0], out[-1]) == ("a", "b")
    assert "bytes left out" in out


def test_exit_code_is_a_number() -> None:
    """An exit code that is text is refused."""
    code: Any = "0"
    with pytest.raises(InvalidBackendError, match="exit code of task a/b must be a number or None, not '0'"):
        outcome_of(task(), code)
