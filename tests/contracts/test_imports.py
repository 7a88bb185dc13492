"""Dependencies point one way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .source import CORE, PLUGINS, Module, all_modules, core_modules, modules

BY_NAME = {module.name: module for module in core_modules()}
# The floors of the core, from the ground up; `rhapsody/__init__.py` says what is on each.
FLOORS = [
    {"errors", "version"},
    {"settings", "log"},
    {"model"},
    {"protocol"},
    {"worker"},
    {"seam", "hookspecs"},
    {"scheduling"},
    {"sessions"},
    {"observers"},
    {"adapters"},
    {"backends", "compat"},
    {"", "api", "plugin"},
    {"measure"},
    {"testing"},
    {"cli", "__main__"},
]
ROOMS_OF_PLUGINS = {"rhapsody.api", "rhapsody.plugin", "rhapsody.errors", "rhapsody.worker"}


def _ours(names: set[str]) -> set[str]:
    return {name for name in names if name == "rhapsody" or name.startswith("rhapsody.")} - {"rhapsody"}


def _reached(start: str) -> set[str]:
    """Return what a module of the core imports at run time, and what those import."""
    seen: set[str] = set()
    left = [start]
    while left:
        name = left.pop()
        if name not in seen and name in BY_NAME:
            seen.add(name)
            left += _ours(BY_NAME[name].imports(at_run_time=True))
    return seen - {start}


@pytest.mark.parametrize("module", core_modules(), ids=lambda module: module.name)
def test_core_imports_no_plugin(module: Module) -> None:
    """No module of the core imports a plugin."""
    assert not {name for name in module.imports() if name.startswith("rhapsody_")}


@pytest.mark.parametrize(
    ("plugin", "module"),
    [pytest.param(plugin, module, id=module.name) for plugin in PLUGINS for module in modules(plugin / "src")],
)
def test_plugin_imports_public_rooms(plugin: Path, module: Module) -> None:
    """A plugin imports the core's modules for plugins alone, and no other plugin."""
    own = plugin.name.replace("-", "_")
    imported = module.imports()
    others = {name for name in imported if name.startswith("rhapsody_") and name.partition(".")[0] != own}
    assert not others, "a plugin stands by itself"
    measured = {"rhapsody.measure"} if module.name.endswith(".bench") else set()  # how to run the raw engine, for that
    assert _ours(imported) <= ROOMS_OF_PLUGINS | measured


def _floor_of(name: str) -> int:
    """Return the number of a module's floor: the one of its longest name that the table has."""
    parts = name.removeprefix("rhapsody").lstrip(".").split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    for candidate in names:
        for number, floor in enumerate(FLOORS):
            if candidate in floor:
                return number
    raise AssertionError(f"{name} is on no floor")


@pytest.mark.parametrize("module", core_modules(), ids=lambda module: module.name)
def test_imports_go_down(module: Module) -> None:
    """A module imports from its own floor and those below it, for type checkers too."""
    own = _floor_of(module.name)
    assert not {name for name in _ours(module.imports()) if _floor_of(name) > own}


@pytest.mark.parametrize(
    "source", [CORE, *(plugin / "src" for plugin in PLUGINS)], ids=lambda source: source.parent.name
)
def test_no_modules_import_each_other(source: Path) -> None:
    """No chain of imports leads back to where it began, those for type checkers counted."""
    graph = {module.name: module.imports() for module in modules(source)}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for imported in graph[name] & graph.keys() - {name}:
                visit(imported, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_worker_needs_only_cloudpickle() -> None:
    """The worker imports the standard library and cloudpickle only, and psutil where there is no /proc."""
    needed = {"rhapsody.worker", *_reached("rhapsody.worker")} | {"rhapsody.worker.guard_process"}
    foreign = {
        name.partition(".")[0]
        for module in needed
        for name in BY_NAME[module].imports(at_run_time=True)
        if name.partition(".")[0] not in sys.stdlib_module_names
    }
    assert foreign == {"cloudpickle", "psutil", "rhapsody"}


def test_nothing_imports_the_cli() -> None:
    """Only the command line imports the command line."""
    for module in all_modules():
        if not module.name.startswith("rhapsody.cli") and module.name != "rhapsody.__main__":
            assert not {name for name in module.imports() if name.startswith("rhapsody.cli")}, module.name


def _loaded_by(statement: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {statement}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(done.stdout.split())


def test_api_import_is_light() -> None:
    """Importing the interface loads no backend, no engine and no command line."""
    loaded = _loaded_by("import rhapsody.api")
    engines = {"numpy", "dask", "distributed", "dragon", "radical"}
    heavy = {"click", "opentelemetry", "rich", "structlog", "pebble", "pytest"} | engines
    assert not {name.partition(".")[0] for name in loaded} & heavy
    assert not {name for name in loaded if name.startswith("rhapsody_")}
    assert "rhapsody.backends.local.backend" not in loaded
    assert "rhapsody.cli" not in loaded


def test_package_import_loads_nothing() -> None:
    """Importing the package alone loads none of its modules."""
    assert {name for name in _loaded_by("import rhapsody") if name.startswith("rhapsody")} == {"rhapsody"}


def test_help_loads_no_command() -> None:
    """`rhapsody --help` imports no command."""
    loaded = _loaded_by("from rhapsody.cli import group; group.main(['--help'], standalone_mode=False)")
    assert "click" in loaded
    assert not {name for name in loaded if name.startswith("rhapsody.cli.")}
    assert "rich" not in loaded


def test_module_imports_start_nothing() -> None:
    """Importing any module starts no thread and no process."""
    names = [module.name for module in core_modules() if not module.name.endswith("__main__")]
    program = f"""
import importlib, os, threading
before = set(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else set()
for name in {names!r}:
    importlib.import_module(name)
assert threading.active_count() == 1, threading.enumerate()
import psutil
assert not psutil.Process().children(), psutil.Process().children()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""
