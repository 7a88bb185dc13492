"""From a task to Dragon's terms and, over the files of a job, back to an outcome; without the engine.

What a task may say in `backend_options` is in docs/how-to/dragon.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from rhapsody.errors import TaskExecutionError, UnsupportedError
from rhapsody.plugin import FUNCTION, ComputeTask, Outcome, TaskState, command_of, trace_environment
from rhapsody.worker import whole_frames

#: In the environment of a Python process: `import dragon` leaves multiprocessing as Python has it. With Dragon's own
#: classes in its place (0.15), a Pool inside a task waits for ever.
ENVIRONMENT: Final = {"DRAGON_PATCH_MP": ""}

#: What a process template may set; the words are those of dragon.native.process.ProcessTemplate.
TEMPLATE: Final = frozenset({"cwd", "env", "policy", "options"})
#: What a template of a job may set besides.
JOB_TEMPLATE: Final = TEMPLATE | {"target", "args"}
#: Bytes kept of the beginning, and as many of the end, of an output that is not captured to a file.
KEEP: Final = 8 * 2**20
#: Characters of its standard error that the exception of an executable quotes.
TAIL: Final = 4096

# `exec` keeps the pid, so it is the executable that Dragon watches and signals. The shell opens the files: otherwise it
# would inherit a pipe that nobody writes to and nobody closes, and Dragon, where it writes what one prints, takes it to
# run until whatever it left in the background has closed its output.
_RUN: Final = 'exec <"$0" >>"$1" 2>>"$2"; shift 2; exec "$@"'
# The interpreter of a function that has a process to itself. Dragon is not imported, which takes a second.
_CALL: Final = (
    "import json, sys; path = json.loads(sys.argv.pop()); sys.path += [one for one in path if one not in sys.path]; "
    "from rhapsody.worker import run_file; run_file(*sys.argv[1:])"
)


class Launch(NamedTuple):
    """One kind of process to start."""

    processes: int  # how many of them
    target: str  # the executable
    args: tuple[str, ...]
    keywords: dict[str, Any]  # others of Dragon's ProcessTemplate


def ranks_of(task: ComputeTask) -> int:
    """How many processes a task is made of."""
    templates = (task.backend_options or {}).get("process_templates")
    if templates:
        return sum(count for count, _ in templates)
    return 1 if task.resources is None else task.resources.ranks


def is_plain(task: ComputeTask) -> bool:
    """Whether a worker of the group can run a task: it asks for one processor, and for no option."""
    resources = task.resources
    return not task.backend_options and (
        resources is None or (resources.ranks, resources.cores_per_rank, resources.gpus_per_rank) == (1, 1, 0)
    )


def launches(
    task: ComputeTask,
    folder: str,
    streams: tuple[str, str, str],
    marker: Mapping[str, str],
    batch: tuple[str, str] | None = None,
) -> list[Launch]:
    """Translate a task, which runs in `folder` where it names none.

    `streams` are the file that it reads, and those to which what it writes is appended. A function's `batch` are the
    files of its batch and of the frames, as for `rhapsody.worker.run_file`; its folder and variables are set there.

    Raises:
        FileNotFoundError: its executable, or the folder in which it should run, is not there.
    """
    options = task.backend_options or {}
    templates = options.get("process_templates") or [(ranks_of(task), options.get("process_template") or {})]
    own_folder, own_variables = (task.cwd, task.environment or {}) if batch is None else (None, ENVIRONMENT)
    result = []
    for count, template in templates:
        keywords = {key: value for key, value in template.items() if key in TEMPLATE}
        cwd = str(keywords.get("cwd") or (folder if own_folder is None else Path(own_folder).expanduser()))
        call = () if batch is None else (sys.executable, "-c", _CALL, *batch, json.dumps(sys.path))
        keywords |= {
            "cwd": cwd,
            "env": environment_of(trace_environment(task), own_variables, keywords.get("env") or {}, marker),
            "stdout": subprocess.DEVNULL,  # as Dragon's own DEVNULL
            "stderr": subprocess.DEVNULL,
        }
        argv = call or _argv(task, template, cwd)
        result.append(Launch(count, "/bin/sh", ("-c", _RUN, *streams, *argv), keywords))
    return result


def environment_of(*layers: Mapping[str, str | None]) -> dict[str, str]:
    """Return this process's variables, and over them each layer; as plain strings, which can be loaded anywhere.

    None as a value removes a variable.
    """
    merged: dict[str, str | None] = {**os.environ}
    for layer in layers:
        merged |= {str.__str__(name): None if value is None else str.__str__(value) for name, value in layer.items()}
    return {name: value for name, value in merged.items() if value is not None}


def _argv(task: ComputeTask, template: Mapping[str, Any], cwd: str) -> tuple[str, ...]:
    arguments = [str(argument) for argument in template.get("args", task.arguments)]
    program = str(template.get("target", task.executable))
    if not Path(cwd).is_dir():
        raise FileNotFoundError(f"there is no folder {cwd!r} to run in")
    if task.shell and "target" not in template:
        return ("/bin/sh", "-c", " ".join([program, *map(shlex.quote, arguments)]))
    path = (task.environment or {}).get("PATH")
    found = shutil.which(program if "/" not in program else str(Path(cwd, program)), path=path)
    if found is None:
        where = "on PATH" if "/" not in program else f"in {cwd}"
        raise FileNotFoundError(f"could not start {program!r}: there is no such executable {where}")
    return (found, *arguments)


def check(task: ComputeTask, backend: str, known: frozenset[str]) -> None:
    """Refuse options and resources that no Dragon backend honours.

    Raises:
        UnsupportedError: naming the task, the backend, the option and the remedy.
    """
    options = task.backend_options or {}

    def refuse(problem: str, remedy: str) -> None:
        raise UnsupportedError(f"task {task.uid}: backend {backend!r} {problem}; {remedy}")

    for key in options:
        if key not in known:
            refuse(f"has no option {key!r}", f"it has {', '.join(sorted(known)) or 'none'}")
    if task.resources is not None and task.resources.memory is not None:
        refuse("does not reserve memory", "leave it out")
    timeout = options.get("timeout")
    if timeout is not None and (not isinstance(timeout, int | float) or isinstance(timeout, bool) or timeout <= 0):
        refuse(f"cannot use timeout={timeout!r}", "give seconds above 0")
    if options.get("pmi") not in (None, "cray", "pmix"):
        refuse(f"cannot use pmi={options['pmi']!r}", "give 'cray', 'pmix' or None")
    _check_templates(options, refuse, is_function=task.kind is FUNCTION)
    if task.kind is FUNCTION and (ranks_of(task) > 1 or options.get("pmi") is not None):
        refuse("runs functions in one process", "give ranks and pmi to an executable")


def _check_templates(options: Mapping[str, Any], refuse: Any, *, is_function: bool) -> None:
    single, several = options.get("process_template"), options.get("process_templates")
    if single is not None and several is not None:
        refuse("cannot use process_template and process_templates at once", "give one of them")
    if single is not None:
        _check_template(single, TEMPLATE, refuse)
    if several is None:
        return
    if is_function:
        refuse("runs functions in one process", "give process_templates to an executable")
    if not isinstance(several, Sequence) or isinstance(several, str) or not several:
        refuse(f"cannot use process_templates={several!r}", "give a list of (processes, mapping)")
    for item in several:
        if not isinstance(item, Sequence) or len(item) != 2 or not isinstance(item[0], int) or item[0] < 1:
            refuse(f"cannot use {item!r} in process_templates", "give pairs of a number above 0 and a mapping")
        _check_template(item[1], JOB_TEMPLATE, refuse)


def _check_template(template: Any, known: frozenset[str], refuse: Any) -> None:
    if not isinstance(template, Mapping):
        refuse(f"cannot use {template!r} as a process template", f"give a mapping of {', '.join(sorted(known))}")
    for key in template:
        if key not in known:
            refuse(f"cannot use {key!r} in a process template", f"there are {', '.join(sorted(known))}")


class JobFiles:
    """The files of one job, by their name before its ending: what its processes read, and what they write."""

    def __init__(self, task: ComputeTask, folder: Path, name: str) -> None:
        self._task = task
        self._command = command_of(task, folder) if task.kind is not FUNCTION else None
        self._paths = (self._command.stdout_path, self._command.stderr_path) if self._command else (None, None)
        self._input, self._frames, out, err = (folder / f"{name}.{kind}" for kind in ("in", "frames", "out", "err"))
        self._out, self._err = Path(self._paths[0] or out), Path(self._paths[1] or err)
        self._ours = (self._input, self._frames, out, err)

    def plan(self, folder: str, marker: Mapping[str, str], batch: bytes = b"") -> list[Launch]:
        """Write what the processes read, the batch of a function, and return them as `launches` does."""
        if self._command is None:
            self._input.write_bytes(batch)
            return launches(self._task, folder, (os.devnull,) * 3, marker, batch=(str(self._input), str(self._frames)))
        stdin = self._command.stdin_path or os.devnull
        if self._command.stdin is not None:
            stdin = str(self._input)
            self._input.write_bytes(self._command.stdin)
        Path(stdin).open().close()  # where it is not there, this says so
        for file in (self._out, self._err):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)  # the shell appends
        return launches(self._task, folder, (stdin, str(self._out), str(self._err)), marker)

    def frames(self) -> bytes:
        """Return the frames that a function's process has written."""
        data = self._frames.read_bytes() if self._frames.exists() else b""
        return data[: whole_frames(data)]

    def outcome(self, code: int, started_at: float | None, ran_on: str | None) -> Outcome:
        """Return how an executable ended, with what it wrote."""
        paths = self._paths
        out = None if paths[0] else output_of(self._out)
        err = output_of(self._err) if code or not paths[1] else ""
        outcome = Outcome(
            self._task.uid,
            TaskState.DONE if code == 0 else TaskState.FAILED,
            exit_code=code,
            stdout=out,
            stderr=None if paths[1] else err,
            stdout_path=paths[0],
            stderr_path=paths[1],
            started_at=started_at,
            ended_at=time.time(),
            ran_on=ran_on,
        )
        if code != 0:
            outcome.exception = TaskExecutionError(self._task.uid, code, err[-TAIL:], [path for path in paths if path])
        return outcome

    def remove(self) -> None:
        """Remove what is not the user's."""
        for file in self._ours:
            if str(file) not in self._paths:
                with contextlib.suppress(OSError):  # it was never there, or cannot be: its name may be too long
                    file.unlink()


def output_of(path: Path) -> str:
    """Read what an executable wrote: all of it, or its beginning and its end."""
    size = path.stat().st_size if path.exists() else 0
    if size == 0:
        return ""
    with path.open("rb") as file:
        data = file.read(KEEP)
        if size > KEEP:
            rest = size - KEEP
            if rest > KEEP:
                data += b"\n[... %d bytes left out ...]\n" % (rest - KEEP)
                file.seek(-KEEP, os.SEEK_END)
            data += file.read(KEEP)
    return data.decode("utf-8", "replace")
