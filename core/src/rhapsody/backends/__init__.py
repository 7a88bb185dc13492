"""Execution backends by class name: `from rhapsody.backends import DaskExecutionBackend`.

Each name is imported from the distribution that registers it, when it is asked for and not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..discovery import available_backends as available_backends
    from ..discovery import get_backend as get_backend
    from .base import ExecutionBackend as ExecutionBackend
    from .concurrent import ConcurrentExecutionBackend as ConcurrentExecutionBackend

_FUNCTIONS = ("available_backends", "get_backend")


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name.startswith("__"):
        raise AttributeError(name)
    from .. import discovery

    if name in _FUNCTIONS:
        return getattr(discovery, name)
    if name == "ExecutionBackend":
        from .base import ExecutionBackend

        return ExecutionBackend
    return discovery.load_class(name)


def __dir__() -> list[str]:
    """List what can be imported from here."""
    from .. import discovery

    return sorted({*_FUNCTIONS, "ExecutionBackend", *discovery.class_names()})
