"""Options that stand beside a task in one mapping, as workflow engines give them, sorted into the fields of a task.

A mapping such as `{"env": {...}, "ranks": 4, "pre_exec": [...]}` mixes fields of a task, what it needs of the machine,
and options of an engine. Here each finds its field; what is no field of a task goes to the backend, which knows its
options and refuses the others by name.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final

from rhapsody.errors import InvalidTaskError, describe
from rhapsody.model.policies import POLICY_FIELDS
from rhapsody.model.resources import Resources

_SAME: Final = {"env": "environment"}  # another name, and the field
FILE_FIELDS: Final = {"stdout": "stdout_file", "stderr": "stderr_file"}  # as a result of a task each is text
_PER_RANK: Final = ("ranks", "cores_per_rank", "gpus_per_rank", "mem_per_rank")
_NEAR: Final = 0.75  # of `difflib`: how alike a name and a field are for the name to be a misspelled one
_MIB: Final = 2**20  # `mem_per_rank` counts these, as RADICAL-Pilot does

_OPERATOR: Final = re.compile(r"&&|\|\||\|&?|;|&")
_REDIRECTION: Final = re.compile(r"(\d?|&)(>>|>|<)(&\d|[\w./~-]*);?")
_LAST_OF_A_COMMAND: Final = re.compile(r"[\w./-]+;")


def fields_of(options: Mapping[str, Any], known: Collection[str], uid: str) -> dict[str, Any]:
    """Return the fields of a task that a mapping of options describes.

    Args:
        options: fields of a task; `env` for `environment`; `ranks`, `cores_per_rank`, `gpus_per_rank` and
            `mem_per_rank` (MiB) for `resources`; anything else is an option of the backend.
        known: the fields of a task that may be given here.
        uid: of the task, for errors.

    Raises:
        InvalidTaskError: the same thing is given twice, or makes no sense.
    """
    if not isinstance(options, Mapping):
        raise InvalidTaskError(f"task {describe(uid)}: options must be a mapping, not {describe(options)}")
    fields: dict[str, Any] = {}
    needs: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in options.items():
        field = _SAME.get(name, name)
        if name in _PER_RANK:
            needs[name] = value
        elif field not in known:
            rest[name] = value
        elif field in fields:
            raise InvalidTaskError(f"task {describe(uid)}: {field} is given twice, once as {name}")
        else:
            fields[field] = value
    if needs:
        if fields.get("resources") is not None:
            raise InvalidTaskError(f"task {describe(uid)}: {', '.join(needs)} are given twice: keep Resources(...)")
        fields["resources"] = _resources(needs, uid)
    elif isinstance(fields.get("resources"), Mapping):
        fields["resources"] = _resources(fields["resources"], uid)
    if rest:
        fields["backend_options"] = rest
    return fields


def sort_fields(
    given: Mapping[str, Any], known: Collection[str], uid: str
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Sort what a task is described by beside its common fields.

    Args:
        given: policies; `task_backend_specific_kwargs`, a mapping of options; words such as `env` and `ranks`; others.
        known: the fields of a task.
        uid: of the task, for errors.

    Returns:
        Policies, other fields, and what is no field of a task.

    Raises:
        InvalidTaskError: the same thing is given twice, or makes no sense.
        TypeError: the name of a field, misspelled.
    """
    beside = {FILE_FIELDS.get(name, name): value for name, value in given.items()}
    fields = fields_of(beside.pop("task_backend_specific_kwargs", None) or {}, known, uid)
    policies = {name: beside.pop(name) for name in POLICY_FIELDS if name in beside}
    if wrong := misspelled(beside, known):
        raise TypeError(f"ComputeTask() got an unexpected keyword argument {wrong[0]!r}")
    others = fields_of(beside, ("environment",), uid)
    extra = others.pop("backend_options", {})
    fields |= others
    policies |= {name: fields.pop(name) for name in POLICY_FIELDS if name in fields}
    return policies, fields, extra


def is_described(kind: type, known: Collection[str], name: str, value: object) -> bool:
    """Return whether an item of a mapping describes a task: what is none of its results, or the file for one."""
    return name in known or not hasattr(kind, name) or (name in FILE_FIELDS and isinstance(value, PurePath))


def misspelled(names: Iterable[str], known: Collection[str]) -> list[str]:
    """Return those names that are no fields of a task, and are meant to be."""
    others = {*known, *_SAME, *FILE_FIELDS, *_PER_RANK, "task_backend_specific_kwargs"}
    return [name for name in names if name not in others and difflib.get_close_matches(name, others, 1, _NEAR)]


def _resources(needs: Mapping[str, Any], uid: str) -> Resources:
    given = dict(needs)
    memory = given.pop("mem_per_rank", None)
    try:
        if memory is not None and not isinstance(memory, int | float):
            raise TypeError("mem_per_rank must be a number of MiB")
        if memory:
            given["memory"] = int(memory * given.get("ranks", 1) * _MIB)
        return Resources(**given)
    except (TypeError, ValueError) as error:
        text = ", ".join(f"{name}={describe(value)}" for name, value in needs.items())
        raise InvalidTaskError(f"task {describe(uid)} cannot have {text}: {error}") from error


def shell_line(executable: str, words: Sequence[object]) -> str:
    """Return a command line for a shell of words that were split from one, where what the quotes meant is lost.

    Operators (`&&`, `||`, `|`, `;`, `&`) and redirections (`>> file`, `2>&1`) stay what they are; any other word is
    quoted, so that it arrives as it is written.
    """
    return " ".join([executable, *(_quoted(str(word)) for word in words)])


def _quoted(word: str) -> str:
    if _OPERATOR.fullmatch(word) or _REDIRECTION.fullmatch(word) or _LAST_OF_A_COMMAND.fullmatch(word):
        return word
    return shlex.quote(word)
