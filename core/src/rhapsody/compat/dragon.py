"""`DragonExecutionBackend`: Dragon's V3 backend with the `batch_kwargs` of older scripts."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import Any, Final

from rhapsody.errors import BackendConfigurationError, describe
from rhapsody.seam.discovery import load_class

# Arguments of Dragon's Batch that are arguments of V3 too; the others have no meaning here, where no Batch is used.
_SAME: Final = ("num_workers", "disable_telemetry", "disable_background_batching", "disable_batch_submission")


def __getattr__(name: str) -> Any:
    """Make the class when it is asked for: its base is in a distribution that may not be installed."""
    if name == "DragonExecutionBackend":
        return _make_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _make_class() -> Any:
    base: Any = load_class("DragonExecutionBackendV3")

    class DragonExecutionBackend(base):  # type: ignore[misc]  # its class is known when it is loaded
        """V3, with `batch_kwargs`.

        Args:
            batch_kwargs: arguments of Dragon's Batch; those of V3 are used, one warning names the others.
            name: the name under which tasks choose the backend.
            options: the arguments of V3.
        """

        def __init__(
            self, batch_kwargs: Mapping[str, Any] | str | None = None, name: str = "dragon", **options: Any
        ) -> None:
            if isinstance(batch_kwargs, str):  # V3's own first argument
                super().__init__(batch_kwargs, **options)
            else:
                super().__init__(name, **_arguments(batch_kwargs or {}, name), **options)

    return DragonExecutionBackend


def _arguments(batch_kwargs: Mapping[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(batch_kwargs, Mapping):
        raise BackendConfigurationError(
            f"backend {name!r}: batch_kwargs must be a mapping, not {describe(batch_kwargs)}"
        )
    unused = [key for key in batch_kwargs if key not in _SAME]
    if unused:
        warnings.warn(
            f"backend {name!r} uses the whole Dragon runtime and no Batch; of batch_kwargs, "
            f"{', '.join(map(str, unused))} have no effect",
            RuntimeWarning,
            stacklevel=4,
        )
    return {key: value for key, value in batch_kwargs.items() if key in _SAME}
