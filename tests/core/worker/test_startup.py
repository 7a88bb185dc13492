"""What is said of an executable that cannot be started: the remedy, and the exit code of a shell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import ComputeTask, TaskExecutionError, TaskState

from ..local import local, run


def script(folder: Path, name: str, text: bytes, mode: int = 0o755) -> None:
    path = folder / name
    path.write_bytes(text)
    path.chmod(mode)


CASES: list[tuple[dict[str, Any], int, str]] = [
    ({"executable": "rhapsody-no-such-program"}, 127, "No such file"),
    ({"executable": "echo hello", "arguments": ["world"]}, 127, "executable='echo', arguments=['hello', 'world']"),
    ({"executable": "run.sh"}, 127, "executable='./run.sh'"),
    ({"executable": "~/run.sh"}, 127, "write the path in full"),
    ({"executable": "$HOME/run.sh"}, 127, "write the path in full"),
    ({"executable": "./windows.sh"}, 127, "dos2unix"),
    ({"executable": "./lost.sh"}, 127, "an interpreter that cannot be run: '/no/such/python'"),
    ({"executable": "./plain.sh"}, 126, "chmod +x"),
    ({"executable": "./text"}, 126, "begins with `#!`"),
    ({"executable": "./folder"}, 126, "it is a folder"),
    ({"executable": "true", "cwd": "/no/such/folder"}, 127, "its cwd '/no/such/folder' is no folder"),
]


@pytest.mark.parametrize(("fields", "code", "said"), CASES, ids=[str(fields["executable"]) for fields, _, _ in CASES])
async def test_a_failed_start_names_the_remedy(fields: dict[str, Any], code: int, said: str, tmp_path: Path) -> None:
    """The task fails with the exit code, and its error and stderr say what to write."""
    script(tmp_path, "run.sh", b"#!/bin/sh\n")
    script(tmp_path, "windows.sh", b"#!/bin/sh\r\necho hello\r\n")
    script(tmp_path, "lost.sh", b"#!/no/such/python\n")
    script(tmp_path, "plain.sh", b"#!/bin/sh\n", 0o644)
    script(tmp_path, "text", b"hello\n")
    (tmp_path / "folder").mkdir()
    (task,) = await run(local(), ComputeTask(**{"cwd": tmp_path, **fields}))
    assert task.state is TaskState.FAILED
    assert task.exit_code == code
    assert isinstance(task.exception, TaskExecutionError)
    assert task.exception.exit_code == code
    assert said in str(task.exception)
    assert said in str(task.stderr)
