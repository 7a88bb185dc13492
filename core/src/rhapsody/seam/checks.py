"""Checks plugins against the hook specifications and the version of the interface."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Final

import pluggy

from rhapsody.errors import InvalidBackendError, describe
from rhapsody.hookspecs import PROJECT
from rhapsody.seam.capabilities import INTERFACE_VERSION, BackendCapabilities, Deadlines
from rhapsody.seam.metadata import provider_of

AWAITED: Final = ("rhapsody_init", "rhapsody_submit", "rhapsody_cancel", "rhapsody_withdraw", "rhapsody_shutdown")


def refuse_coroutines(manager: pluggy.PluginManager, plugin: object, name_of: Callable[[object], str]) -> None:
    """Refuse coroutine functions for hooks that are only called: nothing of them would ever run."""
    wrong = [
        caller.name
        for caller in manager.get_hookcallers(plugin) or ()
        for implementation in caller.get_hookimpls()
        if caller.name not in AWAITED and _is_coroutine(caller.name, implementation.function)
    ]
    if wrong:
        raise InvalidBackendError(
            f"{name_of(plugin)} has {', '.join(wrong)} as a coroutine function, which is called and not awaited; "
            f"make it a plain method"
        )


def refuse_unmarked(plugin: object, name_of: Callable[[object], str]) -> None:
    """Refuse methods that are named as hooks and lack the marker: nothing would ever call them."""
    unmarked = [
        name
        for name in dir(type(plugin))
        if name.startswith("rhapsody_")
        and callable(getattr(plugin, name, None))
        and not hasattr(getattr(plugin, name), f"{PROJECT}_impl")
    ]
    if unmarked:
        raise InvalidBackendError(
            f"{name_of(plugin)} has {', '.join(unmarked)} without the marker rhapsody.plugin.hookimpl, so nothing "
            f"would call it; write @hookimpl above it, or name it otherwise if it is no hook"
        )


def check_declarations(backend: object) -> None:
    """Refuse capabilities and deadlines that are not what core reads.

    Raises:
        InvalidBackendError: another type.
    """
    for field, kind in (("capabilities", BackendCapabilities), ("deadlines", Deadlines)):
        value = getattr(backend, field, None)
        if not isinstance(value, kind):
            raise InvalidBackendError(
                f"{describe_backend(backend)}: {field} must be a {kind.__name__}, not {describe(value)}: "
                f"{field} = {kind.__name__}(...)"
            )


def _is_coroutine(hook: str, function: object) -> bool:
    streams = hook != "rhapsody_monitor" and inspect.isasyncgenfunction(function)  # which is to be an async iterator
    return streams or inspect.iscoroutinefunction(function)


def check_interface(backend: object) -> None:
    """Refuse a backend that was written for another version of the interface.

    Raises:
        InvalidBackendError: it was.
    """
    version = getattr(backend, "interface_version", None)
    if version == INTERFACE_VERSION:
        return
    if not isinstance(version, int):
        remedy = f"it must declare interface_version = {INTERFACE_VERSION}"
    elif version < INTERFACE_VERSION:
        remedy = "upgrade its distribution"
    else:
        remedy = "upgrade rhapsody-core"
    raise InvalidBackendError(
        f"{describe_backend(backend)} was written for version {version} of the backend interface, and this "
        f"rhapsody-core speaks version {INTERFACE_VERSION}: {remedy}"
    )


def describe_backend(backend: object) -> str:
    """Name a backend's class, and the distribution and version that it comes from, for an error's sentence."""
    kind = backend if isinstance(backend, type) else type(backend)
    text = f"backend class {kind.__module__}.{kind.__qualname__}"
    provider = provider_of(kind.__module__.partition(".")[0])
    return f"{text} ({provider})" if provider else text
