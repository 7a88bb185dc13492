"""The fields by which a user describes a task, as far as the kinds and their checks read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rhapsody.model.resources import Resources


class Description(Protocol):
    """What `ComputeTask` has before it is submitted; a protocol, since a task knows its kind and not the reverse."""

    function: Callable[..., Any] | None
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    executable: str | Path | None
    arguments: Sequence[Any]
    stdin: str | bytes | Path | None
    cwd: str | Path | None
    environment: Mapping[str, str | None] | None
    seed: int | Sequence[int] | None
    shell: bool
    capture_stdio: bool
    resources: Resources | None
    backend: str | None
    backend_options: Mapping[str, Any] | None
    uid: str
