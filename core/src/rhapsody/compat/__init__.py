"""Old places of names: what scripts written for the package `rhapsody-py` import, and where it is now.

`import rhapsody` appends a finder that is asked last (`find_spec` here answers for it), so that modules which no longer
exist, such as `rhapsody.api.session`, can be imported. The first use of each old name gives a DeprecationWarning that
says its new place.
"""

from __future__ import annotations

import importlib
import warnings
from functools import partial
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

_API: Final = {name: f"rhapsody.api.{name}" for name in ("ComputeTask", "Session")}
_TASKS: Final = {
    "ComputeTask": "rhapsody.api.ComputeTask",
    "BaseTask": "rhapsody.api.ComputeTask",
    "AITask": "rhapsody.compat.names.AITask",
}
_ERRORS: Final = {
    **{
        name: f"rhapsody.api.{name}" for name in ("RhapsodyError", "BackendError", "SessionError", "TaskExecutionError")
    },
    "TaskValidationError": "rhapsody.api.InvalidTaskError",
    "ResourceError": "rhapsody.api.UnsupportedError",
}
_CONSTANTS: Final = {
    "BackendMainStates": "rhapsody.compat.names.BackendMainStates",
    "StateMapper": "rhapsody.compat.names.StateMapper",
    "TasksMainStates": "rhapsody.api.TaskState",
}
_DISCOVERY: Final = {
    "BackendRegistry": "rhapsody.compat.names.BackendRegistry",
    "discover_backends": "rhapsody.compat.names.discover_backends",
    "get_backend": "rhapsody.api.get_backend",
}
_BASE: Final = {"BaseBackend": "rhapsody.backends.ExecutionBackend"}
_EVENTS: Final = {
    name: f"rhapsody.observers.telemetry.events.{name}"
    for name in (
        "BaseEvent", "ResourceUpdate", "SessionEnded", "SessionStarted", "TaskCanceled", "TaskCompleted", "TaskCreated",
        "TaskFailed", "TaskQueued", "TaskStarted", "TaskSubmitted", "define_event", "make_event",
    )
}  # fmt: skip
_MANAGER: Final = {"TelemetryManager": "rhapsody.observers.telemetry.manager.TelemetryManager"}
_LOGGER: Final = {"enable_logging": "rhapsody.compat.names.enable_logging"}
_CLASSES: Final = {
    "concurrent": {"ConcurrentExecutionBackend": "rhapsody.backends.ConcurrentExecutionBackend"},
    "dask_parallel": {"DaskExecutionBackend": "rhapsody.backends.DaskExecutionBackend"},
    "dragon": {
        "DragonExecutionBackend": "rhapsody.compat.dragon.DragonExecutionBackend",
        **{f"DragonExecutionBackendV{n}": f"rhapsody.backends.DragonExecutionBackendV{n}" for n in (1, 2, 3)},
    },
    "noop": {"NoopExecutionBackend": "rhapsody.compat.noop.NoopExecutionBackend"},
    "radical_pilot": {"RadicalExecutionBackend": "rhapsody.backends.RadicalExecutionBackend"},
}

#: By module, what an old name is now. A module that exists has those names here that it has lost.
OLD_PLACES: Final[dict[str, dict[str, str]]] = {
    "rhapsody": _TASKS | _ERRORS | _DISCOVERY | _LOGGER,
    "rhapsody.api": _TASKS | _ERRORS,
    "rhapsody.api.errors": _ERRORS,
    "rhapsody.api.session": {"Session": "rhapsody.api.Session"},
    "rhapsody.api.task": _TASKS,
    "rhapsody.backends": _BASE
    | _CONSTANTS
    | _DISCOVERY
    | {"Session": "rhapsody.api.Session"}
    | {
        name: _CLASSES[module][name]
        for module, name in (("dragon", "DragonExecutionBackend"), ("noop", "NoopExecutionBackend"))
    },
    "rhapsody.backends.base": _BASE,
    "rhapsody.backends.constants": _CONSTANTS,
    "rhapsody.backends.discovery": _DISCOVERY,
    "rhapsody.backends.execution": {name: place for names in _CLASSES.values() for name, place in names.items()},
    **{f"rhapsody.backends.execution.{module}": names for module, names in _CLASSES.items()},
    "rhapsody.logger": _LOGGER,
    "rhapsody.telemetry": _EVENTS | _MANAGER,
    "rhapsody.telemetry.events": _EVENTS,
    "rhapsody.telemetry.manager": _MANAGER,
}
#: What is wrong where the package of the same import name is installed too, and the cure.
BOTH_INSTALLED: Final = (
    "rhapsody-py and rhapsody-core are both installed, and own the same folder, in which each has overwritten files of "
    "the other: pip uninstall rhapsody-py rhapsody-core, then pip install rhapsody-core"
)
_warned: set[tuple[str, str]] = set()


def is_overwritten() -> bool:
    """Return whether the folder of this package has files of the other one, in which `api` is a folder."""
    return (Path(__file__).parent.parent / "api").is_dir()


def is_old(module: str, name: str) -> bool:
    """Return whether a module had a name, or a module of that name in it."""
    return name in OLD_PLACES.get(module, {}) or f"{module}.{name}" in OLD_PLACES


def old_name(module: str, name: str) -> Any:
    """Return what a module had under a name, and warn of it once; a module in it needs no import of its own.

    Raises:
        AttributeError: it had no such name.
        BackendNotInstalledError: a backend of a distribution that is not installed.
    """
    place = OLD_PLACES.get(module, {}).get(name)
    if place is None:
        if f"{module}.{name}" in OLD_PLACES:
            return importlib.import_module(f"{module}.{name}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    if (module, name) not in _warned:
        _warned.add((module, name))
        warnings.warn(f"{module}.{name} is {place} now", DeprecationWarning, stacklevel=3)
    owner, _, new = place.rpartition(".")
    return getattr(importlib.import_module(owner), new)


def find_spec(name: str) -> ModuleSpec | None:
    """Return how to import a module that no longer exists; None where there never was one."""
    if name not in OLD_PLACES:
        return None
    return ModuleSpec(name, _OldModule(), is_package=any(other.startswith(f"{name}.") for other in OLD_PLACES))


class _OldModule(Loader):
    """Makes a module that reads its names from the table when they are asked for."""

    def exec_module(self, module: ModuleType) -> None:
        module.__doc__ = f"The old place of {', '.join(OLD_PLACES[module.__name__])}; see `rhapsody.compat`."
        module.__dict__["__getattr__"] = partial(_lookup, module.__name__)
        module.__dict__["__dir__"] = partial(sorted, OLD_PLACES[module.__name__])


def _lookup(module: str, name: str) -> Any:
    return old_name(module, name)
