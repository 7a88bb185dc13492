"""RHAPSODY: a runtime for ensembles of scientific and AI tasks; one script, any execution backend.

The map of the package:

    api        what a user imports: Session, ComputeTask, Resources, TaskState, the errors
    backends   execution backends by class name, imported from whatever distribution has them
    plugin     what an author of a backend imports
    hookspecs  the contract between core and a backend
    worker     what a backend runs inside its engine
    testing    the conformance suite for authors of backends

`rhapsody.Session`, `ComputeTask`, `Resources` and `TaskState` work too, imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import ComputeTask as ComputeTask
    from .api import Resources as Resources
    from .api import Session as Session
    from .api import TaskState as TaskState

__version__ = "0.1.0"


_API = ("ComputeTask", "Resources", "Session", "TaskState")


def __getattr__(name: str) -> Any:
    """Import one of the main names of the user's interface."""
    if name in _API:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module 'rhapsody' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what can be had from here."""
    return sorted([*_API, "__version__"])
