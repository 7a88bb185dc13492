"""Execution backends by class name: `from rhapsody.backends import DaskExecutionBackend`.

Each name is imported from the distribution that registers it, when it is asked for and not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rhapsody.backends.base import ExecutionBackend as ExecutionBackend
    from rhapsody.backends.concurrent import ConcurrentExecutionBackend as ConcurrentExecutionBackend
    from rhapsody.backends.lookup import get_backend as get_backend
    from rhapsody.seam.discovery import available_backends as available_backends

_FUNCTIONS = ("available_backends", "get_backend")


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name.startswith("__"):
        raise AttributeError(name)
    from rhapsody.seam import discovery

    if name == "available_backends":
        return discovery.available_backends
    if name == "get_backend":
        from rhapsody.backends.lookup import get_backend

        return get_backend
    if name == "ExecutionBackend":
        from rhapsody.backends.base import ExecutionBackend

        return ExecutionBackend
    from rhapsody.compat import is_old, old_name

    return old_name(__name__, name) if is_old(__name__, name) else discovery.load_class(name)


def __dir__() -> list[str]:
    """List what can be imported from here."""
    from rhapsody.seam import discovery

    return sorted({*_FUNCTIONS, "ExecutionBackend", *discovery.class_names()})
