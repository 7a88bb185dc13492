"""RHAPSODY: a runtime for ensembles of scientific and AI tasks; one script, any execution backend.

The doors, which is what others import:

    api        what a user imports: Session, ComputeTask, Resources, TaskState, the errors
    backends   execution backends by class name, imported from whatever distribution has them
    plugin     what an author of a backend imports
    hookspecs  the contract between core and a backend
    worker     what a backend runs inside its engine
    errors     every error
    testing    the conformance suite for authors of backends
    measure    what `rhapsody bench` and benchmarks measure with
    compat     where names of the package `rhapsody-py` are now

The floors, from the top; imports go down only:

    cli                the commands
    testing, measure   the conformance suite; measurements beside the raw engines
    backends, compat   the base class, and the local backend; old places of names
    adapters           other interfaces to the same backends: workflow engines
    observers          what watches a session where it is asked for: the journal and its readers
    sessions           what users hold and wait for; the recorder writes results into tasks
    scheduling         drives one backend: the backlog, batching, the life of its tasks without I/O, and its driver
    seam               between core and a backend: capabilities, capacity, events, calls of hooks, discovery
    worker             runs inside an engine's worker; standard library and cloudpickle only
    protocol           what travels: batches, frames, failures
    model              pure data: tasks, states, resources, outcomes
    settings, log      the environment; logging
    errors, version

`rhapsody.Session`, `ComputeTask`, `Resources` and `TaskState` work too, imported when they are first used.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rhapsody.api import ComputeTask as ComputeTask
    from rhapsody.api import Resources as Resources
    from rhapsody.api import Session as Session
    from rhapsody.api import TaskState as TaskState
    from rhapsody.version import __version__ as __version__


class _OldModules:
    """Finds modules that no longer exist; the last finder, so that it is asked for nothing that does exist."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> Any:
        """Return how to import a module of the package `rhapsody-py`."""
        if not name.startswith("rhapsody."):
            return None
        from rhapsody.compat import find_spec

        return find_spec(name)


sys.meta_path.append(_OldModules)

if os.path.isdir(os.path.join(os.path.dirname(__file__), "api")):  # noqa: PTH112, PTH118, PTH120  # pathlib costs more than this module
    import warnings

    from rhapsody.compat import BOTH_INSTALLED

    warnings.warn(BOTH_INSTALLED, RuntimeWarning, stacklevel=2)

_API = ("ComputeTask", "Resources", "Session", "TaskState")


def __getattr__(name: str) -> Any:
    """Import one of the main names of the user's interface, or the version."""
    if name in _API:
        from rhapsody import api

        return getattr(api, name)
    if name == "__version__":
        from rhapsody.version import __version__

        return __version__
    from rhapsody.compat import old_name

    return old_name("rhapsody", name)


def __dir__() -> list[str]:
    """List what can be had from here."""
    return sorted([*_API, "__version__"])
