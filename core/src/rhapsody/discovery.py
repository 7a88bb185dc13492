"""Finds backends by name: entry points of the group `rhapsody.backends`, loaded one at a time and only when asked for.

Listing reads the metadata of what is installed and imports nothing, so a broken plugin harms neither the list nor
the others.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
from collections.abc import Iterator
from importlib.metadata import Distribution, EntryPoint
from typing import Any, Final

import attrs

from . import settings
from .backends.base import ExecutionBackend
from .capabilities import INTERFACE_VERSION
from .errors import (
    AmbiguousBackendError,
    BackendConfigurationError,
    BackendError,
    BackendLoadError,
    BackendNotFoundError,
    BackendNotInstalledError,
    InvalidBackendError,
)
from .hooks import check_interface, check_observer
from .log import get_logger

log = get_logger(__name__)

BACKENDS: Final = "rhapsody.backends"
OBSERVERS: Final = "rhapsody.observers"

# The first party's backends: what to install for a name, or a class, that is not there.
KNOWN: Final = {
    "dask": ("rhapsody-dask", "DaskExecutionBackend"),
    "dragon": ("rhapsody-dragon", "DragonExecutionBackendV3"),
    "dragon_v1": ("rhapsody-dragon", "DragonExecutionBackendV1"),
    "dragon_v2": ("rhapsody-dragon", "DragonExecutionBackendV2"),
    "dragon_v3": ("rhapsody-dragon", "DragonExecutionBackendV3"),
    "radical": ("rhapsody-radical", "RadicalExecutionBackend"),
    "radical_pilot": ("rhapsody-radical", "RadicalExecutionBackend"),
}


@attrs.frozen(kw_only=True)
class BackendInfo:
    """One name under which a backend is installed, or could be.

    Attributes:
        name: what to ask for.
        distribution: what it comes from; None if that is unknown.
        version: of the distribution; None if it is not installed.
        target: `module:Class`; None if it is not installed.
        installed: whether it can be asked for.
        remedy: what to do where it is not; a pip command.
    """

    name: str
    distribution: str | None = None
    version: str | None = None
    target: str | None = None
    installed: bool = True
    remedy: str = ""


def available_backends() -> list[BackendInfo]:
    """List every backend that is installed, and the first party's that are not, by name. Imports none of them."""
    found = [
        BackendInfo(
            name=point.name,
            distribution=_whose(point)[0],
            version=_whose(point)[1],
            target=point.value,
        )
        for point in _entry_points(BACKENDS)
    ]
    names = {info.name for info in found} | settings.disabled_backends()
    found += [
        BackendInfo(name=name, distribution=package, installed=False, remedy=f"pip install {package}")
        for name, (package, _) in KNOWN.items()
        if name not in names
    ]
    return sorted(found, key=lambda info: (info.name, info.distribution or ""))


def load_backend(name: str) -> type[ExecutionBackend]:
    """Import the class of a backend.

    Args:
        name: as in `available_backends`; `distribution:name` where two distributions offer it.

    Raises:
        BackendNotInstalledError: it is the first party's and not installed; the message has the pip command.
        BackendNotFoundError: nobody's; the message has the nearest names.
        AmbiguousBackendError: two distributions offer it.
        BackendLoadError: it cannot be imported; the cause is attached.
        InvalidBackendError: what the entry point names is no backend class, or of another interface version.
    """
    owner, _, short = name.rpartition(":")
    if short in settings.disabled_backends():
        raise BackendNotFoundError(f"backend {short!r} is taken out by RHAPSODY_DISABLE_BACKENDS")
    points = [
        point for point in _entry_points(BACKENDS) if point.name == short and (not owner or _whose(point)[0] == owner)
    ]
    if not points:
        raise _not_found(name, short)
    if len(points) > 1:
        choices = " or ".join(f"{_whose(point)[0] or 'an unknown distribution'}:{short}" for point in points)
        raise AmbiguousBackendError(
            f"backend {short!r} is offered by several distributions; ask for {choices}, or uninstall one of them"
        )
    return _load(points[0])


def get_backend(name: str, /, **options: Any) -> ExecutionBackend:
    """Build a backend by name: `get_backend("dask", resources={"n_workers": 4})`.

    Args:
        name: as for `load_backend`.
        options: the arguments of the backend's class.

    Raises:
        BackendError: as for `load_backend`.
        BackendConfigurationError: the class refuses the options.
    """
    kind = load_backend(name)
    try:
        inspect.signature(kind).bind(**options)
    except TypeError as error:
        raise BackendConfigurationError(
            f"backend {name!r} is a {kind.__name__}, which takes {inspect.signature(kind)}: {error}"
        ) from error
    backend = kind(**options)
    if not options.get("name"):
        backend.name = name.rpartition(":")[2]  # asked for by an alias, it answers to it
    return backend


def load_class(class_name: str) -> type[ExecutionBackend]:
    """Import a backend's class by its class name: what `from rhapsody.backends import X` does.

    Raises:
        BackendNotInstalledError: the first party's, and not installed.
        AttributeError: nobody's.
    """
    for point in _entry_points(BACKENDS):
        if _attr(point) == class_name:
            return _load(point)
    for package, known in KNOWN.values():
        if known == class_name:
            raise BackendNotInstalledError(f"{class_name} is in the {package} package: pip install {package}")
    known_classes = class_names()
    hint = _nearest(class_name, known_classes)
    raise AttributeError(f"rhapsody.backends has no {class_name!r}{hint}; it has {', '.join(sorted(known_classes))}")


def class_names() -> set[str]:
    """Return the names of the backend classes that can be imported from `rhapsody.backends`."""
    return {attr for point in _entry_points(BACKENDS) if (attr := _attr(point))}


def load_observers() -> Iterator[object]:
    """Import and build the observers that are installed (group `rhapsody.observers`); one that is unsound is logged."""
    for point in _entry_points(OBSERVERS):
        try:
            observer = point.load()()
            check_observer(observer)
        except (Exception, SystemExit) as error:
            log.error("observer_not_loaded", observer=point.name, target=point.value, error=repr(error))
        else:
            yield observer


def refresh() -> None:
    """Find distributions that were installed since this interpreter started."""
    importlib.invalidate_caches()


def _entry_points(group: str) -> list[EntryPoint]:
    """Return a group's entry points, each distribution's once, whatever is on the path twice."""
    disabled = settings.disabled_backends() if group == BACKENDS else frozenset()
    unique = {(point.name, _whose(point)[0], point.value): point for point in _readable(group)}
    return [point for point in unique.values() if point.name not in disabled]


def _readable(group: str) -> list[EntryPoint]:
    """Return a group's entry points; a distribution whose entry points cannot be read is passed over, and logged."""
    try:
        return list(importlib.metadata.entry_points(group=group))
    except Exception:  # one bad file spoils the list of all: read them one by one
        found: list[EntryPoint] = []
        seen: set[str | None] = set()
        for distribution in importlib.metadata.distributions():
            name = _described(distribution)[0]
            if name in seen:  # the first on the path is the one that is imported
                continue
            seen.add(name)
            try:
                found += distribution.entry_points.select(group=group)
            except Exception as error:
                log.warning("entry_points_not_read", distribution=name, error=repr(error))
        return found


def _attr(point: EntryPoint) -> str:
    """Return the name of the class that an entry point names; empty where it names none."""
    try:
        return point.attr or ""
    except (AttributeError, AssertionError, ValueError):  # its value is not `module:Class`: there is no match to ask
        return ""


def _whose(point: EntryPoint) -> tuple[str | None, str | None]:
    """Return the name and the version of the distribution that offers an entry point."""
    return _described(point.dist) if point.dist is not None else (None, None)


def _described(distribution: Distribution) -> tuple[str | None, str | None]:
    """Return the name and the version of a distribution; None for what its metadata does not tell."""
    try:
        metadata = distribution.metadata
    except FileNotFoundError:  # says importlib_metadata, which an engine may have imported: it takes over the search
        return None, None
    if not metadata or "Name" not in metadata or "Version" not in metadata:  # the file is damaged, or not there
        return None, None
    return metadata["Name"], metadata["Version"]


def _load(point: EntryPoint) -> type[ExecutionBackend]:
    origin = " ".join(filter(None, _whose(point))) or "an unknown distribution"
    try:
        found = point.load()
    except (Exception, SystemExit) as error:
        raise BackendLoadError(
            f"backend {point.name!r} of {origin} cannot be imported from {point.value}: {type(error).__name__}: "
            f"{error}; reinstall or upgrade it, or uninstall it"
        ) from error
    if not (isinstance(found, type) and issubclass(found, ExecutionBackend)):
        raise InvalidBackendError(
            f"backend {point.name!r} of {origin}: {point.value} is not a subclass of "
            f"rhapsody.plugin.ExecutionBackend (interface version {INTERFACE_VERSION})"
        )
    check_interface(found)
    return found


def _not_found(name: str, short: str) -> BackendError:
    if short in KNOWN:
        package = KNOWN[short][0]
        return BackendNotInstalledError(f"backend {name!r} is in the {package} package: pip install {package}")
    names = {point.name for point in _entry_points(BACKENDS)}
    hint = _nearest(short, names | set(KNOWN))
    return BackendNotFoundError(f"no backend is named {name!r}{hint}; installed are {', '.join(sorted(names))}")


def _nearest(name: str, names: set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(names), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""
