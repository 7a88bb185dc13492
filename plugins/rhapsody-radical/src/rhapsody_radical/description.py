"""Translates a task to RADICAL-Pilot's TaskDescription, and refuses what it cannot. No engine; reads no files."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Final

from rhapsody.api import ComputeTask, Resources
from rhapsody.errors import UnsupportedError, describe
from rhapsody.plugin import EXECUTABLE, trace_environment

from .plain import MAY_HOLD, plain, why_not
from .resources import PilotRequest, nearest

_LIST: Final = (list, tuple)
_NUMBER: Final = (int, float)

# The fields of RADICAL-Pilot's TaskDescription that may be given as backend_options.
OPTIONS: Final[dict[str, tuple[type, ...]]] = {
    "name": (str,),
    "sandbox": (str, PurePath),
    "named_env": (str,),
    "pre_launch": (str, *_LIST),
    "pre_exec": (str, *_LIST),
    "pre_exec_sync": (bool,),
    "post_launch": (str, *_LIST),
    "post_exec": (str, *_LIST),
    "input_staging": (str, Mapping, *_LIST),
    "output_staging": (str, Mapping, *_LIST),
    "stage_on_error": (bool,),
    "priority": (int,),
    "use_mpi": (bool,),
    "ranks": (int,),
    "ranks_per_node": (int,),
    "cores_per_rank": (int,),
    "gpus_per_rank": _NUMBER,
    "mem_per_rank": (int,),
    "lfs_per_rank": (int,),
    "threading_type": (str,),
    "gpu_type": (str,),
    "tags": (Mapping,),
    "metadata": (Mapping,),
    "timeout": _NUMBER,
    "startup_timeout": _NUMBER,
    "cleanup": (bool,),
    "partition": (int,),
    "services": _LIST,
}
# The least value of an option that is a number.
LEAST: Final[dict[str, int]] = {
    **dict.fromkeys(("ranks", "ranks_per_node", "cores_per_rank"), 1),
    **dict.fromkeys(("gpus_per_rank", "mem_per_rank", "lfs_per_rank", "timeout", "startup_timeout", "partition"), 0),
}
_ITS_OWN: Final = "RHAPSODY runs functions and executables, and gives them to RADICAL-Pilot as executables"
# Its other fields, and what to use instead.
NOT_OPTIONS: Final[dict[str, str]] = {
    "uid": "the task's uid is a field of the task",
    "executable": "executable is a field of the task",
    "arguments": "arguments are a field of the task",
    "environment": "environment is a field of the task",
    "stdout": "give the task stdout=Path(...), or capture_stdio=True",
    "stderr": "give the task stderr=Path(...), or capture_stdio=True",
    "pilot": "the backend has one pilot",
    "slots": "RADICAL-Pilot places the task; ask for resources",
    "restartable": "RADICAL-Pilot has not implemented it",
    "info_pattern": "services are not supported",
    **dict.fromkeys(("mode", "code", "function", "args", "kwargs", "command"), _ITS_OWN),
    **dict.fromkeys(("raptor_id", "raptor_file", "raptor_class"), _ITS_OWN),
    **dict.fromkeys(("scheduler", "worker_file", "worker_class"), _ITS_OWN),
    "cpu_processes": "it is called ranks now",
    "cpu_threads": "it is called cores_per_rank now",
    "cpu_thread_type": "it is called threading_type now",
    "cpu_process_type": "RADICAL-Pilot ignores it",
    "gpu_processes": "it is called gpus_per_rank now",
    "gpu_process_type": "it is called gpu_type now",
    "gpu_threads": "RADICAL-Pilot ignores it",
    "gpu_thread_type": "RADICAL-Pilot ignores it",
    "lfs_per_process": "it is called lfs_per_rank now",
    "mem_per_process": "it is called mem_per_rank now",
}
_SAME_AS: Final = {  # an option, and the field of Resources that says the same
    "ranks": "ranks",
    "cores_per_rank": "cores_per_rank",
    "gpus_per_rank": "gpus_per_rank",
    "mem_per_rank": "memory",
}
_PLAIN_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN_UID: Final = re.compile(r"[A-Za-z0-9_.:+-]+")
_MIB: Final = 2**20


def check(task: ComputeTask, backend: str) -> None:
    """Refuse what RADICAL-Pilot cannot honour.

    Raises:
        UnsupportedError: names the task, the option and a remedy.
    """
    for option, value in (task.backend_options or {}).items():
        _check_option(task, backend, option, value)
    if task.kind is not EXECUTABLE and _ranks(task) > 1:
        _refuse(task, backend, "a function cannot run in several ranks; make it an executable")


def check_size(task: ComputeTask, backend: str, request: PilotRequest) -> None:
    """Refuse a task that the pilot could never place, and which RADICAL-Pilot would keep waiting.

    Raises:
        UnsupportedError: names the task, what it wants, and what the pilot has.
    """
    options = task.backend_options or {}
    wanted = task.resources or Resources()
    ranks = _ranks(task)
    cores = ranks * options.get("cores_per_rank", wanted.cores_per_rank)
    gpus = ranks * options.get("gpus_per_rank", wanted.gpus_per_rank)
    has_gpus = request.description.get("gpus", 0)
    if cores > request.slots:
        _refuse(
            task,
            backend,
            f"it wants {cores} cores, and the pilot has {request.slots}; "
            f"ask for a larger one with resources={{'cores': {cores}}}",
        )
    if gpus > has_gpus and "nodes" not in request.description:
        _refuse(
            task,
            backend,
            f"it wants {gpus:g} GPUs, and the pilot has {has_gpus}; "
            f"ask for them with resources={{'gpus': {math.ceil(gpus)}}}",
        )
    memory = options.get("mem_per_rank", _memory_per_rank(wanted))
    if request.node_memory and memory > request.node_memory:
        _refuse(
            task,
            backend,
            f"it wants {memory} MB of memory for a rank, and a node of the pilot has {request.node_memory}; "
            f"ask for less, or spread it over more ranks",
        )
    if ranks > 1 and request.local and not has_mpi():
        _refuse(task, backend, "it wants several ranks, and neither mpirun nor mpiexec is on PATH; install an MPI")


def _ranks(task: ComputeTask) -> int:
    ranks: int = (task.backend_options or {}).get("ranks", (task.resources or Resources()).ranks)
    return ranks


def check_fields(task: ComputeTask, backend: str, request: PilotRequest) -> None:
    """Refuse fields of an executable task with text that no shell takes, or that the pilot is too far away for.

    Raises:
        UnsupportedError: names the task, the field and a remedy.
    """
    for name, value in (task.environment or {}).items():
        if not _PLAIN_NAME.fullmatch(name):
            _refuse(task, backend, f"environment variable {name!r} has a name that no shell can set")
        _check_text(task, backend, [value or ""])
    _check_text(task, backend, [str(task.cwd or "")])
    if isinstance(task.stdin, str):
        _check_unicode(task, backend, task.stdin)
    if not request.shared_files:
        machine = request.description["resource"]
        if task.stdin is not None:
            _refuse(
                task,
                backend,
                f"stdin cannot travel to {machine!r} by ssh; let the executable read a file that is there",
            )
        if task.kind is EXECUTABLE and (task.capture_stdio or task.stdout_file or task.stderr_file):
            _refuse(
                task,
                backend,
                f"files of stdout and stderr cannot be had from {machine!r} by ssh; let the executable write its own",
            )


def has_mpi() -> bool:
    """Whether this machine can start ranks: an MPI on PATH or beside Python, where the pilot finds it too."""
    beside = str(PurePath(sys.executable).parent)
    path = os.pathsep.join([beside, os.environ.get("PATH", os.defpath)])
    return any(shutil.which(launcher, path=path) for launcher in ("mpirun", "mpiexec"))


def describe_executable(task: ComputeTask, uid: str, backend: str, stdin: str | None = None) -> dict[str, Any]:
    """Return the TaskDescription of an executable task.

    Args:
        task: what to run; `check` and `check_fields` have passed it.
        uid: its name in RADICAL-Pilot.
        backend: the backend's name, for an error.
        stdin: file that it reads, on the pilot's side.

    Raises:
        UnsupportedError: text that no shell, or no operating system, takes.

    RADICAL-Pilot writes the executable as it is into a bash script, and the arguments and the environment in double
    quotes, where bash still expands `$` and backticks. So the whole command goes in as the executable, quoted so that
    bash hands on exactly what the user wrote, and the values of the environment are escaped.
    """
    words = [str(task.executable), *map(str, task.arguments)]
    _check_text(task, backend, words)
    if task.shell:
        words = ["/bin/sh", "-c", " ".join([words[0], *map(shlex.quote, words[1:])])]
    command = shlex.join(words)
    if stdin is not None:
        command += f" < {shlex.quote(stdin)}"
    if task.cwd is not None:
        command = f"cd {shlex.quote(str(Path(task.cwd).expanduser()))} && exec {command}"
    removed = [name for name, value in (task.environment or {}).items() if value is None]
    if removed:
        command = f"unset {' '.join(removed)} && {command if task.cwd is not None else f'exec {command}'}"
    return _describe(task, uid, command)


def describe_batch(command: Sequence[str], uid: str, task: ComputeTask | None = None) -> dict[str, Any]:
    """Return the TaskDescription of a batch of functions: `command` runs them.

    Args:
        command: the executable and its arguments.
        uid: its name in RADICAL-Pilot.
        task: the only task of the batch, whose resources and options it then has.
    """
    return _describe(task, uid, shlex.join(command))


def _describe(task: ComputeTask | None, uid: str, command: str) -> dict[str, Any]:
    description: dict[str, Any] = {"uid": uid, "executable": command}
    if task is None:
        return description
    if _PLAIN_UID.fullmatch(task.uid):
        description["name"] = task.uid
    variables = {**trace_environment(task), **(task.environment or {})}
    values = {name: escape(value) for name, value in variables.items() if value is not None}
    if values:
        description["environment"] = values
    if task.resources is not None:
        description.update(_resources(task.resources))
    for option, value in (task.backend_options or {}).items():
        description[option] = _option(option, value)
    return description


def escape(value: str) -> str:
    """Make text mean itself between double quotes in a shell script."""
    return re.sub(r'([\\"$`])', r"\\\1", value)


def _resources(resources: Resources) -> dict[str, Any]:
    fields: dict[str, Any] = {"ranks": resources.ranks, "cores_per_rank": resources.cores_per_rank}
    if resources.gpus_per_rank:
        fields["gpus_per_rank"] = float(resources.gpus_per_rank)
    if resources.memory is not None:
        fields["mem_per_rank"] = _memory_per_rank(resources)
    return fields


def _memory_per_rank(resources: Resources) -> int:
    """Return MB."""
    return math.ceil((resources.memory or 0) / resources.ranks / _MIB)


def _option(option: str, value: Any) -> Any:
    if option in ("pre_launch", "pre_exec", "post_launch", "post_exec") and isinstance(value, str):
        return [value]
    return plain(value)


def _check_option(task: ComputeTask, backend: str, option: str, value: Any) -> None:
    if option in NOT_OPTIONS:
        _refuse(task, backend, f"backend_options cannot set {option!r}: {NOT_OPTIONS[option]}")
    kinds = OPTIONS.get(option)
    if kinds is None:
        _refuse(task, backend, f"backend_options have no {option!r}{nearest(str(option), OPTIONS)}")
    elif not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        _refuse(task, backend, f"backend_options: {option} must be {wanted}, not {describe(value)}")
    elif option in LEAST and isinstance(value, _NUMBER) and not value >= LEAST[option]:
        _refuse(task, backend, f"backend_options: {option} must be at least {LEAST[option]}, not {value!r}")
    if (problem := why_not(value)) is not None:
        _refuse(
            task,
            backend,
            f"backend_options: {option} cannot travel to RADICAL-Pilot ({problem}); it may hold {MAY_HOLD}",
        )
    if option in _SAME_AS and task.resources is not None:
        _refuse(task, backend, f"{option} is given twice: keep Resources({_SAME_AS[option]}=...)")


def _check_text(task: ComputeTask, backend: str, words: Sequence[str]) -> None:
    for word in words:
        if "\0" in word:
            _refuse(task, backend, f"{describe(word)} has a NUL character, which no operating system takes")
        _check_unicode(task, backend, word)


def _check_unicode(task: ComputeTask, backend: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        _refuse(task, backend, f"{describe(text)} is not valid Unicode")


def _refuse(task: ComputeTask, backend: str, problem: str) -> None:
    raise UnsupportedError(f"task {task.uid} on backend {backend!r}: {problem}")
