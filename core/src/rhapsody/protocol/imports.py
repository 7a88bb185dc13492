"""What a worker imports as the program does: the program's `sys.path`, and modules that it has reloaded."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

#: The search path and, by name, how often modules were reloaded; None or empty where workers have nothing to follow.
Imports = tuple[tuple[str, ...] | None, Mapping[str, int]]

_at_start = list(sys.path)  # workers were started with it, or with something later
_specs: dict[str, Any] = {}  # by module: as it was when it was last seen; a reload makes another
_reloads: dict[str, int] = {}  # by module, where there was any
_used: dict[int, tuple[int, list[ModuleType]]] = {}  # by identity of a function's globals: their number, its modules
_followed: dict[str, int] = {}  # on a worker: reloads of the program that were repeated here
_path: tuple[str, ...] | None = None  # on a worker: the program's, as it was last followed


def search_path() -> list[str]:
    """Return `sys.path` with absolute entries: a relative one as the import system took it when it first used it."""
    return [_absolute(entry) for entry in sys.path if isinstance(entry, str)]  # the import system ignores others


def _absolute(entry: str) -> str:
    if Path(entry).is_absolute():
        return entry
    used = getattr(sys.path_importer_cache.get(entry), "path", None)
    return used if isinstance(used, str) and Path(used).is_absolute() else str(Path(entry).absolute())


def note_reloads(function: Any) -> None:
    """Note which of the modules that a function uses, its own and those among its globals, were reloaded."""
    own = getattr(function, "__globals__", None)
    if own is None:
        return
    count, modules = _used.get(id(own), (-1, []))
    if count != len(own):
        modules = [value for value in own.values() if type(value) is ModuleType]
        module = sys.modules.get(own.get("__name__", ""))
        if module is not None:
            modules.append(module)
        _used[id(own)] = len(own), modules
    for module in modules:
        name, spec = module.__name__, module.__spec__
        known = _specs.setdefault(name, spec)
        if known is not spec:
            _specs[name] = spec
            _reloads[name] = _reloads.get(name, 0) + 1


def imports() -> Imports | None:
    """Return what workers must follow; None while that is nothing."""
    path = tuple(search_path()) if sys.path != _at_start else None
    return (path, dict(_reloads)) if path is not None or _reloads else None


def follow(sent: Imports, reloaded: Callable[[], object]) -> None:
    """Import as the program does, on a worker.

    Args:
        sent: by the program.
        reloaded: called after a module was reloaded, which forgets what was made of the old one.

    Raises:
        Exception: what a module raises when it is reloaded.
    """
    global _path
    path, reloads = sent
    if path is not None and path != _path:
        _path = path
        for index, entry in enumerate(path):
            if entry not in sys.path and Path(entry).is_dir():  # the worker may be on another machine
                after = next((later for later in path[index + 1 :] if later in sys.path), None)
                sys.path.insert(len(sys.path) if after is None else sys.path.index(after), entry)
        importlib.invalidate_caches()
    for name, count in reloads.items():
        if _followed.get(name, 0) == count:
            continue
        module = sys.modules.get(name)
        if module is not None and name != "__main__":  # else it will be imported as it is now
            importlib.invalidate_caches()
            try:
                importlib.reload(module)
            except ModuleNotFoundError as error:
                if error.name != name:
                    raise
                del sys.modules[name]  # it is no longer to be found here: what imports it again says so
            reloaded()
        _followed[name] = count
