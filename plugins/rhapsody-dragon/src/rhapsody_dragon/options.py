"""From a task to Dragon's words: pure translation, without the engine.

What a task may say in `backend_options`:

    timeout            seconds; the task fails with TimeoutError after them (V1, V3)
    pmi                "cray", "pmix" or None: how the ranks of an MPI job find each other (V1, V3; default "cray")
    process_template   a mapping of `TEMPLATE` keys for the one process of the task (V3)
    process_templates  a list of pairs of a number of processes and such a mapping, which together are one job (V3);
                       here a mapping may also have `target` and `args`, the program and its arguments
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from rhapsody.errors import UnsupportedError
from rhapsody.plugin import ComputeTask

#: What a process template may set; the words are those of dragon.native.process.ProcessTemplate.
TEMPLATE: Final = frozenset({"cwd", "env", "policy", "options"})
#: What a template of a job may set besides.
JOB_TEMPLATE: Final = TEMPLATE | {"target", "args"}
#: Bytes kept of the beginning, and as many of the end, of an output that is not captured to a file.
KEEP: Final = 8 * 2**20

# `exec` keeps the pid, so it is the program that Dragon watches and signals. The shell opens the files: a program would
# inherit a pipe that nobody writes to and nobody closes, and Dragon, where it writes what a program prints, takes the
# program to run until whatever it left in the background has closed its output.
_PROGRAM: Final = 'exec <"$0" >>"$1" 2>>"$2"; shift 2; exec "$@"'
_PROGRAM_BEHIND_A_GATE: Final = 'read -r _ <"$3" || exit 1; exec <"$0" >>"$1" 2>>"$2"; shift 3; exec "$@"'


class Launch(NamedTuple):
    """One kind of process to start.

    Attributes:
        processes: how many of them.
        target: the program.
        args: its arguments.
        keywords: further keywords of Dragon's ProcessTemplate.
    """

    processes: int
    target: str
    args: tuple[str, ...]
    keywords: dict[str, Any]


def ranks_of(task: ComputeTask) -> int:
    """How many processes a task is made of."""
    templates = (task.backend_options or {}).get("process_templates")
    if templates:
        return sum(count for count, _ in templates)
    return 1 if task.resources is None else task.resources.ranks


def launches(
    task: ComputeTask,
    folder: str,
    *,
    stdin: str,
    stdout: str,
    stderr: str,
    marker: Mapping[str, str],
    gate: str | None = None,
) -> list[Launch]:
    """Translate an executable task.

    Args:
        task: an executable.
        folder: in which it runs where it does not say.
        stdin: file that it reads.
        stdout: file to which what it writes is appended.
        stderr: likewise.
        marker: variables that are added to its environment.
        gate: a named pipe of which the processes read a line before they begin.

    Raises:
        FileNotFoundError: its program, or the folder in which it should run, is not there.
    """
    options = task.backend_options or {}
    templates = options.get("process_templates") or [(ranks_of(task), options.get("process_template") or {})]
    result = []
    for count, template in templates:
        keywords = {key: value for key, value in template.items() if key in TEMPLATE}
        cwd = str(keywords.get("cwd") or task.cwd or folder)
        argv = _argv(task, template, cwd)
        keywords |= {
            "cwd": cwd,
            "env": _environment(task.environment or {}, keywords.get("env") or {}, marker),
            "stdout": subprocess.DEVNULL,  # as Dragon's own DEVNULL
            "stderr": subprocess.DEVNULL,
        }
        files = (stdin, stdout, stderr)
        first = ("-c", _PROGRAM, *files) if gate is None else ("-c", _PROGRAM_BEHIND_A_GATE, *files, gate)
        result.append(Launch(count, "/bin/sh", (*first, *argv), keywords))
    return result


def _environment(*layers: Mapping[str, str]) -> dict[str, str]:
    """This process's, and over it each layer; as plain strings, whose class is there wherever they are loaded."""
    merged = {**os.environ}
    for layer in layers:
        merged |= {str.__str__(name): str.__str__(value) for name, value in layer.items()}
    return merged


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
        raise FileNotFoundError(f"could not start {program!r}: there is no such program {where}")
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
    resources = task.resources
    if resources is not None:
        if resources.cores_per_rank > 1:
            refuse(
                f"does not reserve cores_per_rank={resources.cores_per_rank}",
                "leave it at 1, or name the cores in the `policy` of a process_template of dragon_v3",
            )
        if resources.gpus_per_rank or resources.memory is not None:
            refuse(
                "does not reserve GPUs or memory", "name the GPUs in the `policy` of a process_template of dragon_v3"
            )
    timeout = options.get("timeout")
    if timeout is not None and (not isinstance(timeout, int | float) or isinstance(timeout, bool) or timeout <= 0):
        refuse(f"cannot use timeout={timeout!r}", "give seconds above 0")
    if options.get("pmi") not in (None, "cray", "pmix"):
        refuse(f"cannot use pmi={options['pmi']!r}", "give 'cray', 'pmix' or None")
    _check_templates(options, refuse, is_function=task.function is not None)
    if task.function is not None and ranks_of(task) > 1:
        refuse("runs functions in one process", "give the ranks to an executable")


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


def output_of(path: Path) -> str:
    """Read what a program wrote: all of it, or its beginning and its end."""
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
