"""Says why an executable could not be started, in a sentence with the remedy, and by the exit code of a shell."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
from pathlib import Path
from typing import Final

from rhapsody.protocol.command import Command, Finished

NOT_FOUND: Final = 127  # the exit codes that a shell gives
NOT_RUNNABLE: Final = 126
_FIRST_LINE: Final = 256  # bytes of a script that are read for its interpreter


def not_started(command: Command, error: Exception, *, stopped: bool) -> Finished:
    """Return how an executable ended that the operating system did not start."""
    stream = _file_at_fault(command, error)
    if stream:
        problem = f"could not start {command.argv[0]!r}: its {stream}: {error}"
        return Finished(1, "", f"{problem}\n", problem=problem, stopped=stopped)  # as a shell has it
    code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUNNABLE
    remedy = "" if command.shell else _remedy(command, error)
    problem = f"could not start {command.argv[0]!r}: {error}{f'; {remedy}' if remedy else ''}"
    return Finished(code, "", f"{problem}\n", problem=problem, stopped=stopped)


def _file_at_fault(command: Command, error: Exception) -> str:
    """Return which of its files could not be opened; empty if it was none of them."""
    name = getattr(error, "filename", None)
    files = {command.stdin_path: "stdin", command.stdout_path: "stdout", command.stderr_path: "stderr"}
    return "" if name is None else files.get(name, "")


def _remedy(command: Command, error: Exception) -> str:
    name = command.argv[0]
    folder = Path(command.cwd or ".")
    if not folder.is_dir():
        return f"its cwd {command.cwd!r} is no folder"
    path = folder / name
    if "/" in name and path.is_dir():
        return "it is a folder"
    if "/" in name and path.is_file():
        return _of_file(path, error)
    if isinstance(error, FileNotFoundError):
        words = _words(name)
        if name.startswith("~") or "$" in name:
            return "`~` and variables are expanded by a shell: write the path in full, or give shell=True"
        if len(words) > 1 and shutil.which(words[0]) is not None:
            arguments = [*words[1:], *command.argv[1:]]
            return f"it is a command line: write executable={words[0]!r}, arguments={arguments!r}, or give shell=True"
        if "/" not in name and path.is_file():
            return f"it is a file of the folder in which it runs, and not on PATH: write executable={f'./{name}'!r}"
    return ""


def _of_file(path: Path, error: Exception) -> str:
    """Return what is wrong with a file that is there."""
    if not os.access(path, os.X_OK):
        return f"it may not be executed: chmod +x {shlex.quote(str(path))}"
    try:
        with path.open("rb") as file:
            first = file.readline(_FIRST_LINE)
    except OSError:
        return ""
    if first.startswith(b"#!"):
        if first.endswith(b"\r\n"):
            return "its lines end as on Windows, and so does the name of its interpreter: convert it by dos2unix"
        if isinstance(error, FileNotFoundError | PermissionError):
            interpreter = first[2:].decode(errors="replace").strip()
            return f"its first line names an interpreter that cannot be run: {interpreter!r}"
    elif isinstance(error, OSError) and error.errno == errno.ENOEXEC:
        return "it is neither a program of this machine nor a script: a script begins with `#!` and its interpreter"
    return ""


def _words(name: str) -> list[str]:
    try:
        return shlex.split(name)
    except ValueError:  # a quotation mark alone
        return name.split()
