"""What the metadata of installed distributions says: entry points, names and versions. Imports none of them."""

from __future__ import annotations

from typing import Any, Final

import importlib_metadata
from importlib_metadata import EntryPoint

from rhapsody import settings
from rhapsody.log import get_logger

log = get_logger(__name__)
BACKENDS: Final = "rhapsody.backends"
OBSERVERS: Final = "rhapsody.observers"
NAMED_OBSERVERS: Final = "rhapsody.named_observers"
_DISABLED: Final = {BACKENDS: settings.disabled_backends, OBSERVERS: settings.disabled_observers}


def entry_points(group: str) -> list[EntryPoint]:
    """Return a group's entry points, each distribution's once, whatever is on the path twice."""
    disabled = _DISABLED[group]() if group in _DISABLED else frozenset()
    unique = {(point.name, distribution_of(point)[0], point.value): point for point in _readable(group)}
    return [point for point in unique.values() if not disabled & {point.name, "*"}]


def _readable(group: str) -> list[EntryPoint]:
    """Return a group's entry points; a distribution whose entry points cannot be read is passed over, and logged."""
    try:
        return list(importlib_metadata.entry_points(group=group))
    except Exception:  # one bad file fails the list of all: read them one by one
        found: list[EntryPoint] = []
        seen: set[str | None] = set()
        for distribution in importlib_metadata.distributions():
            name = _described(distribution)[0]
            if name in seen:  # the first on the path is the one that is imported
                continue
            seen.add(name)
            try:
                found += distribution.entry_points.select(group=group)
            except Exception as error:
                log.warning("entry_points_not_read", distribution=name, error=repr(error))
        return found


def class_name_of(point: EntryPoint) -> str:
    """Return the name of the class that an entry point names; empty where it names none."""
    try:
        return point.attr or ""
    except (AttributeError, AssertionError, ValueError):  # its value is not `module:Class`: there is no match to ask
        return ""


def distribution_of(point: EntryPoint) -> tuple[str | None, str | None]:
    """Return the name and the version of the distribution that offers an entry point."""
    return _described(point.dist) if point.dist is not None else (None, None)


def _described(distribution: Any) -> tuple[str | None, str | None]:
    """Return the name and the version of a distribution (its class has no stable name); None for what is unknown."""
    try:
        metadata = distribution.metadata
    except FileNotFoundError:  # there is no file of metadata
        return None, None
    if not metadata or "Name" not in metadata or "Version" not in metadata:  # the file is damaged, or not there
        return None, None
    return metadata["Name"], metadata["Version"]


def provider_of(package: str) -> str:
    """Return the name and the version of the distribution that a package comes from; empty where that is unknown."""
    try:
        for name in importlib_metadata.packages_distributions().get(package, []):
            return f"{name} {importlib_metadata.version(name)}"
    except Exception:  # some distribution's metadata is damaged: an error's sentence does without
        return ""
    return ""
