"""A task as a workflow engine describes it, in a dict, translated into a `ComputeTask`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rhapsody.errors import InvalidTaskError, UnsupportedError
from rhapsody.model.options import fields_of, shell_line
from rhapsody.model.task import DESCRIPTION, ComputeTask

# Fields of a task that an engine gives beside the options, not among them.
_BESIDE: Final = {"function", "args", "kwargs", "executable", "arguments", "capture_stdio", "uid", "backend"}
_OPTIONS: Final = frozenset(DESCRIPTION) - _BESIDE - {"backend_options", "metadata"}


def translate(description: Mapping[str, Any], backend: str, name: str) -> ComputeTask:
    """Return the task that a dict of a workflow engine describes.

    Args:
        description: `uid`, and `function`, `args`, `kwargs` or `executable`, `arguments`, `capture_stdio`; options are
            in `task_backend_specific_kwargs`. Further keys are the engine's own.
        backend: its name, for errors.
        name: the uid of the task that is returned.

    Raises:
        InvalidTaskError: no task, or a field that makes no sense.
        UnsupportedError: a prompt, which no backend runs.
    """
    uid = uid_of(description, backend)
    fields = fields_of(options_of(description), _OPTIONS, uid)
    if description.get("executable"):
        fields["executable"] = description["executable"]
        fields["arguments"] = description.get("arguments") or ()
        fields["capture_stdio"] = bool(description.get("capture_stdio"))  # engines give it to functions too
    elif description.get("function"):
        fields.pop("shell", None)  # `Standalone` warns of it, once
        fields["function"] = description["function"]
        fields["args"] = description.get("args") or ()
        fields["kwargs"] = description.get("kwargs") or None
    elif description.get("prompt"):
        raise UnsupportedError(
            f"task {uid!r}: backend {backend!r} cannot run prompts; ask the model from a function, or give the prompt "
            f"to a backend that serves one"
        )
    else:
        raise InvalidTaskError(f"task {uid!r} for backend {backend!r} has neither a function nor an executable")
    task = ComputeTask(uid=name, **fields)
    if task.shell:  # once the arguments are known to be a list
        task.executable, task.arguments = shell_line(str(task.executable), task.arguments), ()
    return task


def uid_of(description: Mapping[str, Any], backend: str) -> str:
    """Return the uid that an engine gave a task, as text.

    Raises:
        InvalidTaskError: it gave none.
    """
    if description.get("uid") in (None, ""):
        raise InvalidTaskError(f"a task for backend {backend!r} has no uid")
    return str(description["uid"])


def options_of(description: Mapping[str, Any]) -> Any:
    """Return what an engine put beside a task."""
    return description.get("task_backend_specific_kwargs") or {}
