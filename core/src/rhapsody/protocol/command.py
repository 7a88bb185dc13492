"""An executable on the wire: what to run, and how it ended; standard library only."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from rhapsody.errors import InvalidBackendError
from rhapsody.protocol.trace import trace_environment

if TYPE_CHECKING:
    from rhapsody.model.task import ComputeTask

#: What a string says, whatever its class: that of a script's enumeration is not there on a worker.
_plain = str.__str__


class Command(NamedTuple):
    """What to run: a task's description, ready for the operating system.

    Attributes:
        argv: the program and its arguments; for `shell` the one command line.
        shell: run through `/bin/sh -c`.
        cwd: folder in which it runs; None for the worker's own.
        environment: variables set beside the worker's own, or removed where the value is None.
        stdin: bytes that it reads; None for nothing, or for what is in a file.
        stdout_path: file for its standard output; None to keep it in memory.
        stderr_path: likewise; it may be the same file.
        stdin_path: file that it reads.
    """

    argv: tuple[str, ...]
    shell: bool = False
    cwd: str | None = None
    environment: Mapping[str, str | None] | None = None
    stdin: bytes | None = None
    stdout_path: str | None = None
    stderr_path: str | None = None
    stdin_path: str | None = None

    @property
    def plain_argv(self) -> tuple[str, ...]:
        """The same as `argv`, for an engine that runs no shell: `/bin/sh -c` is in it where the task asks for one."""
        return ("/bin/sh", "-c", *self.argv) if self.shell else self.argv


class Finished(NamedTuple):
    """How it ended.

    Attributes:
        exit_code: negative for the signal that ended it; 127 if it was not found and 126 if it could not be run, as a
            shell has it; None if that is not known.
        stdout: text, undecodable bytes replaced; None where it went to a file.
        stderr: likewise.
        stopped: whether `stop` ended it.
        problem: why it could not be started; empty if it was.
        error_tail: the end of its standard error, wherever that went.
    """

    exit_code: int | None
    stdout: str | None = None
    stderr: str | None = None
    stopped: bool = False
    problem: str = ""
    error_tail: str = ""


def command_line(executable: str, arguments: Sequence[str], shell: bool) -> tuple[str, ...]:
    """Return the argv of a program; for a shell, one line whose arguments are quoted and whose command is not."""
    if not shell:
        return (executable, *arguments)
    return (" ".join([executable, *map(shlex.quote, arguments)]),)


def folder_of(task: ComputeTask) -> str | None:
    """Return the folder in which a task is to run, with the user's `~` expanded; None for the worker's own."""
    return str(Path(task.cwd).expanduser()) if task.cwd is not None else None


def environment_of(task: ComputeTask, given: Mapping[str, str] | None = None) -> dict[str, str | None] | None:
    """Return the variables to set for a task; None as a value removes one.

    Args:
        task: whose own variables come last.
        given: what the backend sets for the task: its devices and its number of threads, say.
    """
    if task.environment is None and not given:
        return None
    own = {_plain(key): None if value is None else _plain(value) for key, value in (task.environment or {}).items()}
    return {**(given or {}), **own} or None


def command_of(task: ComputeTask, sandbox: Path | None = None, environment: Mapping[str, str] | None = None) -> Command:
    """Translate the description of an executable for the operating system.

    Arguments become text by `str`, one each, whatever they hold; only with `shell` are they quoted, and joined to the
    command line, which is not. What the executable leaves in the background is to be ended with its process group.

    Args:
        task: an executable task.
        sandbox: `context.sandbox`; captured output goes to `UID.out` and `UID.err` in it.
        environment: variables that the backend sets for the task.

    Raises:
        InvalidBackendError: no executable task, or one whose output is captured, without a sandbox.
    """
    if task.kind.name != "executable":
        raise InvalidBackendError(f"task {task.uid} is no executable: command_of is for tasks of the kind EXECUTABLE")
    if task.capture_stdio and sandbox is None:
        raise InvalidBackendError(f"task {task.uid} captures its output: command_of(task, context.sandbox)")
    name = quote(task.uid, safe="")
    stdin = task.stdin.encode() if isinstance(task.stdin, str) else task.stdin
    sandbox = sandbox if task.capture_stdio else None
    return Command(
        argv=command_line(str(task.executable), [str(argument) for argument in task.arguments], task.shell),
        shell=task.shell,
        cwd=folder_of(task),
        environment=environment_of(task, {**trace_environment(task), **(environment or {})}),
        stdin=None if isinstance(stdin, Path) else stdin,
        stdout_path=file_of(task, task.stdout_file) or (str(sandbox / f"{name}.out") if sandbox else None),
        stderr_path=file_of(task, task.stderr_file) or (str(sandbox / f"{name}.err") if sandbox else None),
        stdin_path=file_of(task, stdin) if isinstance(stdin, Path) else None,
    )


def file_of(task: ComputeTask, path: Path | None) -> str | None:
    """Return the path of a file that a task names, with the user's `~` expanded: from its `cwd`, as in a shell."""
    if path is None:
        return None
    return str((Path(folder_of(task) or "") / path.expanduser()).absolute())
