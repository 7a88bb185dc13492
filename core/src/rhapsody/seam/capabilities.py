"""What a backend declares of itself: data that core, the documentation and the conformance suite read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

from rhapsody.errors import BackendConfigurationError

INTERFACE_VERSION: Final = 1  # of the hooks and types that a backend is written against


def _names(value: Iterable[str] | None) -> frozenset[str] | None:
    return None if value is None else frozenset(value)


@attrs.frozen(kw_only=True)
class BackendCapabilities:
    """What a backend can do. What is not declared is refused at submit with UnsupportedError.

    Attributes:
        functions: runs Python functions.
        executables: runs executables.
        remote: runs tasks in another process than the user's, so that what they take and return must be picklable.
        cancel_functions: can stop a function that runs, as a timeout asks.
        cancel_executables: can stop an executable that runs, likewise.
        batch_executables: its batches may hold several executables, which run one after the other; core then groups
            short ones as it groups functions.
        streams: reports while a batch runs: which of its tasks began, and which ended. Otherwise they are QUEUED until
            the batch has ended, and none of them can be given back.
        ranks: honours `Resources.ranks` above 1.
        cores_per_rank: honours `Resources.cores_per_rank` above 1.
        gpus: honours `Resources.gpus_per_rank`.
        memory: honours `Resources.memory`.
        nodes: honours `Resources.nodes`.
        exclusive: honours `Resources.exclusive`.
        shared_data: large arguments, and what `Session.share` returned, travel once to each worker (`context.store`).
        keep_results: the result of a function with `keep=True` stays where it ran, and goes from there to tasks that
            are given it. Where `remote` is not declared, that is the object itself.
        options: the keys of `backend_options` that it knows; None if it checks them itself in `rhapsody_validate`.
    """

    functions: bool = True
    executables: bool = True
    remote: bool = True
    cancel_functions: bool = False
    cancel_executables: bool = False
    batch_executables: bool = False
    streams: bool = True
    ranks: bool = False
    cores_per_rank: bool = False
    gpus: bool = False
    memory: bool = False
    nodes: bool = False
    exclusive: bool = False
    shared_data: bool = False
    keep_results: bool = False
    options: frozenset[str] | None = attrs.field(default=frozenset(), converter=_names)


@attrs.frozen(kw_only=True)
class Deadlines:
    """How long the runner waits for each hook, in seconds, before it gives the backend up."""

    init: float = 60.0
    submit: float = 120.0
    cancel: float = 15.0
    shutdown: float = 30.0


@attrs.frozen(kw_only=True)
class Batching:
    """How the default `rhapsody_batch` groups tasks: functions, and executables where `batch_executables` is declared.

    Attributes:
        enabled: False makes every task a batch of its own.
        target: seconds of work in a batch; None follows the engine's own cost of a batch (20 times that cost, but at
            least 0.02 and at most 5 seconds).
        max_tasks: tasks in a batch, at most.
        max_bytes: bytes of arguments in a batch, at most; a larger task travels alone.
    """

    enabled: bool = True
    target: float | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.gt(0)))
    max_tasks: int = attrs.field(default=10_000, validator=attrs.validators.ge(1))
    max_bytes: int = attrs.field(default=4 * 2**20, validator=attrs.validators.ge(1))

    @classmethod
    def of(cls, value: Batching | Mapping[str, Any] | bool | float | None) -> Batching:
        """Read what a user gave as `batching=`: True, False, the target in seconds, or a mapping of the fields.

        Raises:
            BackendConfigurationError: none of these.
        """
        if value is None or isinstance(value, Batching):
            return value or cls()
        try:
            if isinstance(value, bool):
                return cls(enabled=value)
            if isinstance(value, int | float):
                return cls(target=float(value))
            return cls(**value)
        except (TypeError, ValueError) as error:
            known = ", ".join(field.name for field in attrs.fields(cls))
            raise BackendConfigurationError(
                f"batching={value!r} is neither True, False, a number of seconds, nor a mapping of {known}: {error}"
            ) from error
