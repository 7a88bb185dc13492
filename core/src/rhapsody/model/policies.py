"""What few tasks have beside what they run: what they wait for, retries, limits of time, a priority, a tag, files.

Most tasks ask for none of it: they have no `Policies`, and pay for one empty field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypedDict

import attrs

from rhapsody.errors import InvalidTaskError, describe
from rhapsody.model.kept import KeptResult
from rhapsody.model.retry import Attempt, Retry

CRASH_LIMIT: Final = 5  # lost workers, where a task says nothing
Limit = Literal["timeout", "deadline"]


def _retry_of(value: Retry | int | None) -> Retry | None:
    return Retry(value + 1) if isinstance(value, int) else value


class PolicyFields(TypedDict, total=False):
    """The keyword arguments of a task that are policies."""

    after: Iterable[Any]
    after_any: Iterable[Any]
    retries: Retry | int
    crash_limit: int
    timeout: float | None
    deadline: float | None
    priority: int
    tag: str | None
    input_files: Iterable[str]
    output_files: Iterable[str]
    metadata: Mapping[str, Any]
    idempotent: bool
    cache: bool
    keep: bool
    stdout: Path | None
    stderr: Path | None
    stdout_file: Path | None
    stderr_file: Path | None


@attrs.define(eq=False)
class Policies:
    """The policies of one task, which `ComputeTask` describes, and what was recorded for them.

    Attributes:
        past: the attempts that failed and were followed by another.
        is_unwanted: whether the task was canceled, or its deadline is over: it is not tried again.
        expired: the limit for which the attempt that runs is being stopped.
        takes: results among its arguments that are kept where they are.
    """

    after: Sequence[Any] = attrs.field(default=(), converter=tuple)
    after_any: Sequence[Any] = attrs.field(default=(), converter=tuple)
    retries: Retry | None = attrs.field(default=None, converter=_retry_of)
    crash_limit: int = CRASH_LIMIT
    timeout: float | None = None
    deadline: float | None = None
    priority: int = 0
    tag: str | None = None
    input_files: Sequence[str] = attrs.field(default=(), converter=tuple)
    output_files: Sequence[str] = attrs.field(default=(), converter=tuple)
    metadata: Mapping[str, Any] = attrs.field(factory=dict)
    idempotent: bool = False
    cache: bool = False
    keep: bool = False
    stdout_file: Path | None = None
    stderr_file: Path | None = None
    past: list[Attempt] = attrs.field(factory=list, init=False)
    is_unwanted: bool = attrs.field(default=False, init=False)
    expired: Limit | None = attrs.field(default=None, init=False)
    takes: Sequence[KeptResult] = attrs.field(default=(), init=False)

    @property
    def may_share(self) -> bool:
        """Whether the task may be in a batch with others: not where its time is limited, or results are kept."""
        return self.timeout is None and not self.keep and not self.takes


POLICY_FIELDS: Final = tuple(name for name in PolicyFields.__annotations__ if name not in ("stdout", "stderr"))


def policies_of(uid: str, fields: Mapping[str, Any], is_function: bool = False) -> Policies:
    """Return the policies that a task was described with.

    Args:
        uid: of the task, for errors.
        fields: policies.
        is_function: whether it is a function task.

    Raises:
        InvalidTaskError: one that has the wrong type.
    """
    for names in ("input_files", "output_files"):
        if isinstance(fields.get(names, ()), str) or not isinstance(fields.get(names, ()), Iterable):
            _refuse(uid, f"{names} must be a list of paths", fields.get(names))
    if not isinstance(fields.get("metadata", {}), Mapping):
        _refuse(uid, "metadata must be a mapping", fields.get("metadata"))
    for parents in (fields.get("after", ()), fields.get("after_any", ())):
        if not isinstance(parents, Iterable):
            _refuse(uid, "after and after_any must be lists of tasks", parents)
    given = fields.get("retries", 0)
    if not (isinstance(given, Retry) or given is None or (type(given) is int and given >= 0)):
        _refuse(uid, "retries must be a Retry, or how often it is tried again", given)
    policies = Policies(**fields)
    if type(policies.crash_limit) is not int or policies.crash_limit < 1:
        _refuse(uid, "crash_limit must be a whole number from 1", policies.crash_limit)
    for name in ("timeout", "deadline"):
        seconds = getattr(policies, name)
        if seconds is not None and not (type(seconds) in (int, float) and seconds > 0):
            _refuse(uid, f"{name} must be a number of seconds above 0", seconds)
    if type(policies.priority) is not int:
        _refuse(uid, "priority must be a whole number", policies.priority)
    if not (policies.tag is None or (isinstance(policies.tag, str) and policies.tag)):
        _refuse(uid, "tag must be text", policies.tag)
    for name in ("idempotent", "cache", "keep"):
        if type(getattr(policies, name)) is not bool:
            _refuse(uid, f"{name} must be True or False", getattr(policies, name))
    if policies.keep:
        _check_keep(uid, policies, is_function)
    for stream, file in (("stdout", policies.stdout_file), ("stderr", policies.stderr_file)):
        if file is not None and not isinstance(file, Path):
            _refuse(uid, f"{stream} is the file that an executable writes to, a pathlib.Path", file)
        if file is not None and is_function:
            raise InvalidTaskError(f"task {describe(uid)} has a function and {stream}; capture_stdio keeps its prints")
    return policies


def _check_keep(uid: str, policies: Policies, is_function: bool) -> None:
    problem = None
    if not is_function:
        problem = "an executable, whose output is a file of its own: keep is for functions"
    elif policies.cache:
        problem = "cache=True, for which its result must come to the program"
    elif policies.retries is not None and policies.retries.fallback is not None:
        problem = "a fallback, and nothing says which backend would keep its result"
    if problem is not None:
        raise InvalidTaskError(f"task {describe(uid)} has keep=True and {problem}; leave one of them out")


def _refuse(uid: str, problem: str, value: object) -> None:
    raise InvalidTaskError(f"task {describe(uid)}: {problem}, not {describe(value)}")
