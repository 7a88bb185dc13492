"""`get_backend`: a backend by name, as users ask for it."""

from __future__ import annotations

from typing import Any, cast

from rhapsody.backends.base import ExecutionBackend
from rhapsody.seam.discovery import make_backend


def get_backend(name: str, /, *arguments: Any, **options: Any) -> ExecutionBackend:
    """Build a backend by name: `get_backend("dask", resources={"n_workers": 4})`.

    Args:
        name: as for `rhapsody.seam.discovery.load_backend`: one of `available_backends`, or `distribution:name` where
            two distributions offer it.
        arguments, options: the arguments of the backend's class.

    Raises:
        BackendNotInstalledError: it is the first party's and not installed; the message has the pip command.
        BackendNotFoundError: nobody's; the message has the nearest names.
        AmbiguousBackendError: two distributions offer it.
        BackendLoadError, InvalidBackendError: it cannot be imported, or is no backend for this core.
        BackendConfigurationError: the class refuses the options.
    """
    return cast(
        "ExecutionBackend", make_backend(name, *arguments, **options)
    )  # the half that core uses is what core asks for
