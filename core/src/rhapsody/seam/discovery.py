"""Finds backends by name: entry points of the group `rhapsody.backends`, loaded one at a time and only when asked for.

Listing reads the metadata of what is installed and imports nothing, so a broken plugin harms neither the list nor
the others.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any, Final

import attrs
from importlib_metadata import EntryPoint

from rhapsody import settings
from rhapsody.errors import (
    AmbiguousBackendError,
    BackendConfigurationError,
    BackendError,
    BackendLoadError,
    BackendNotFoundError,
    BackendNotInstalledError,
    InvalidBackendError,
    SessionError,
)
from rhapsody.log import get_logger
from rhapsody.seam.backend import AttachableBackend
from rhapsody.seam.capabilities import INTERFACE_VERSION
from rhapsody.seam.checks import check_interface
from rhapsody.seam.metadata import BACKENDS, NAMED_OBSERVERS, OBSERVERS, class_name_of, distribution_of, entry_points
from rhapsody.seam.observers import check_observer

log = get_logger(__name__)

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
# The newest Python of those whose engine has no wheels for every Python that the core runs on.
NEWEST_PYTHON: Final = {"rhapsody-dragon": (3, 13)}  # dragonhpc 0.15


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


@attrs.frozen(kw_only=True)
class ObserverInfo:
    """One observer that is installed.

    Attributes:
        name: of its entry point.
        distribution: what it comes from; None if that is unknown.
        version: of the distribution.
        target: `module:Class`.
        problem: why it cannot be used; empty if it can.
    """

    name: str
    distribution: str | None
    version: str | None
    target: str
    problem: str


_broken_observers: set[str] = set()  # those that were warned of


def available_backends() -> list[BackendInfo]:
    """List every backend that is installed, and the first party's that are not, by name. Imports none of them."""
    found = [
        BackendInfo(
            name=point.name,
            distribution=distribution_of(point)[0],
            version=distribution_of(point)[1],
            target=point.value,
        )
        for point in entry_points(BACKENDS)
    ]
    names = {info.name for info in found} | settings.disabled_backends()
    found += [
        BackendInfo(name=name, distribution=package, installed=False, remedy=how_to_install(package))
        for name, (package, _) in KNOWN.items()
        if name not in names
    ]
    return sorted(found, key=lambda info: (info.name, info.distribution or ""))


def load_backend(name: str) -> type[AttachableBackend]:
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
        point
        for point in entry_points(BACKENDS)
        if point.name == short and (not owner or distribution_of(point)[0] == owner)
    ]
    if not points:
        raise _not_found(name, short)
    if len(points) > 1:
        choices = " or ".join(f"{distribution_of(point)[0] or 'an unknown distribution'}:{short}" for point in points)
        raise AmbiguousBackendError(
            f"backend {short!r} is offered by several distributions; ask for {choices}, or uninstall one of them"
        )
    return _load(points[0])


def make_backend(name: str, /, *arguments: Any, **options: Any) -> AttachableBackend:
    """Build a backend by name; `rhapsody.backends.lookup.get_backend` documents it."""
    kind = load_backend(name)
    try:
        given = inspect.signature(kind).bind(*arguments, **options).arguments
    except TypeError as error:
        raise BackendConfigurationError(
            f"backend {name!r} is a {kind.__name__}, which takes {inspect.signature(kind)}: {error}"
        ) from error
    backend = kind(*arguments, **options)
    if not given.get("name") and backend.name not in [value for value in arguments if isinstance(value, str)]:
        backend.name = name.rpartition(":")[2]  # asked for by an alias, it answers to it
    return backend


def load_class(class_name: str) -> type[AttachableBackend]:
    """Import a backend's class by its class name: what `from rhapsody.backends import X` does.

    Raises:
        BackendNotInstalledError: the first party's, and not installed.
        AttributeError: nobody's.
    """
    for point in entry_points(BACKENDS):
        if class_name_of(point) == class_name:
            return _load(point)
    for package, known in KNOWN.values():
        if known == class_name:
            raise BackendNotInstalledError(f"{class_name} is in the {package} package: {how_to_install(package)}")
    known_classes = class_names()
    hint = _nearest(class_name, known_classes)
    raise AttributeError(f"rhapsody.backends has no {class_name!r}{hint}; it has {', '.join(sorted(known_classes))}")


def class_names() -> set[str]:
    """Return the names of the backend classes that can be imported from `rhapsody.backends`."""
    return {attr for point in entry_points(BACKENDS) if (attr := class_name_of(point))}


def how_to_install(package: str) -> str:
    """Return the pip command that installs a first party's distribution, or on which Pythons there is one."""
    newest = NEWEST_PYTHON.get(package)
    if newest is None or sys.version_info[:2] <= newest:
        return f"pip install {package}"
    here, last = (".".join(map(str, version)) for version in (sys.version_info[:2], newest))
    return f"{package} needs Python 3.11 to {last}, since its engine has no wheels for {here}"


def load_observers() -> Iterator[object]:
    """Import and build the observers that are installed; one that is broken is left out, with one warning."""
    for point in entry_points(OBSERVERS):
        observer, problem = _load_observer(point)
        if not problem:
            yield observer
        elif point.value not in _broken_observers:
            _broken_observers.add(point.value)
            remedy = f"RHAPSODY_DISABLE_OBSERVERS={point.name} leaves it out"
            log.warning("observer_not_loaded", observer=point.name, target=point.value, error=problem, remedy=remedy)


def available_observers() -> list[ObserverInfo]:
    """List the observers that are installed and not disabled. Imports and builds each."""
    return [
        ObserverInfo(
            name=point.name,
            distribution=distribution_of(point)[0],
            version=distribution_of(point)[1],
            target=point.value,
            problem=_load_observer(point)[1],
        )
        for point in sorted(entry_points(OBSERVERS), key=lambda point: point.name)
    ]


def _load_observer(point: EntryPoint) -> tuple[object, str]:
    """Return an observer, and what is wrong with it; empty if nothing is."""
    try:
        observer = point.load()()
        check_observer(observer)
    except (Exception, SystemExit) as error:
        return None, f"{type(error).__name__}: {error}"
    return observer, ""


def make_observer(name: str, **arguments: Any) -> Any:
    """Build the observer of a name (group `rhapsody.named_observers`): one that a session has only if it is asked for.

    Raises:
        SessionError: no installed distribution offers it.
    """
    for point in entry_points(NAMED_OBSERVERS):
        if point.name == name:
            return point.load()(**arguments)
    raise SessionError(
        f"no observer is named {name!r}: install rhapsody-core again, its metadata is of another version"
    )


def refresh() -> None:
    """Find distributions that were installed since this interpreter started."""
    importlib.invalidate_caches()


def _load(point: EntryPoint) -> type[AttachableBackend]:
    origin = " ".join(filter(None, distribution_of(point))) or "an unknown distribution"
    try:
        found = point.load()
    except (Exception, SystemExit) as error:
        raise BackendLoadError(
            f"backend {point.name!r} of {origin} cannot be imported from {point.value}: {type(error).__name__}: "
            f"{error}; reinstall or upgrade it, or uninstall it"
        ) from error
    if not (isinstance(found, type) and issubclass(found, AttachableBackend)):
        raise InvalidBackendError(
            f"backend {point.name!r} of {origin}: {point.value} is not a subclass of "
            f"rhapsody.plugin.ExecutionBackend (interface version {INTERFACE_VERSION})"
        )
    check_interface(found)
    return found


def _not_found(name: str, short: str) -> BackendError:
    if short in KNOWN:
        package = KNOWN[short][0]
        return BackendNotInstalledError(f"backend {name!r} is in the {package} package: {how_to_install(package)}")
    names = {point.name for point in entry_points(BACKENDS)}
    hint = _nearest(short, names | set(KNOWN))
    return BackendNotFoundError(f"no backend is named {name!r}{hint}; installed are {', '.join(sorted(names))}")


def _nearest(name: str, names: set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(names), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""
