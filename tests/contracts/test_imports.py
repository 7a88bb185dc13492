"""Dependencies point one way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .source import PLUGINS, Module, all_modules, core_modules, modules

BY_NAME = {module.name: module for module in core_modules()}
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
def test_the_core_imports_no_plugin(module: Module) -> None:
    assert not {name for name in module.imports() if name.startswith("rhapsody_")}


@pytest.mark.parametrize(
    ("plugin", "module"),
    [pytest.param(plugin, module, id=module.name) for plugin in PLUGINS for module in modules(plugin / "src")],
)
def test_a_plugin_imports_the_rooms_that_are_for_plugins_and_no_other_plugin(plugin: Path, module: Module) -> None:
    own = plugin.name.replace("-", "_")
    imported = module.imports()
    others = {name for name in imported if name.startswith("rhapsody_") and name.partition(".")[0] != own}
    assert not others, "a plugin stands by itself"
    measured = {"rhapsody.measure"} if module.name.endswith(".bench") else set()  # how to run the raw engine, for that
    assert _ours(imported) <= ROOMS_OF_PLUGINS | measured


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("rhapsody.errors", set()),
        ("rhapsody.states", set()),
        ("rhapsody.task", {"rhapsody.errors", "rhapsody.states"}),
        ("rhapsody.hookspecs", set()),
        ("rhapsody.settings", {"rhapsody.errors"}),
        ("rhapsody.events", {"rhapsody.states"}),
        ("rhapsody.worker", {"rhapsody._executable", "rhapsody._guard"}),
    ],
)
def test_what_stands_at_the_bottom_knows_nothing_above_it(name: str, allowed: set[str]) -> None:
    assert _reached(name) <= allowed


def test_the_worker_needs_the_standard_library_and_cloudpickle_only() -> None:
    needed = {"rhapsody.worker", *_reached("rhapsody.worker")}
    foreign = {
        name.partition(".")[0]
        for module in needed
        for name in BY_NAME[module].imports(at_run_time=True)
        if name.partition(".")[0] not in sys.stdlib_module_names
    }
    assert foreign == {"cloudpickle", "rhapsody"}


def test_nothing_that_drives_a_backend_knows_the_session() -> None:
    for name in ("runner", "batch", "batching", "events", "hooks", "discovery", "context", "worker"):
        assert "rhapsody.session" not in BY_NAME[f"rhapsody.{name}"].imports(at_run_time=True)


def test_the_command_line_is_imported_by_nothing_but_itself() -> None:
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


def test_importing_the_interface_loads_no_backend_no_engine_and_no_command_line() -> None:
    loaded = _loaded_by("import rhapsody.api")
    heavy = {"click", "rich", "structlog", "pebble", "numpy", "dask", "distributed", "dragon", "radical", "pytest"}
    assert not {name.partition(".")[0] for name in loaded} & heavy
    assert not {name for name in loaded if name.startswith("rhapsody_")}
    assert "rhapsody.backends.concurrent" not in loaded
    assert "rhapsody.cli" not in loaded


def test_importing_the_package_alone_loads_none_of_its_modules() -> None:
    assert {name for name in _loaded_by("import rhapsody") if name.startswith("rhapsody")} == {"rhapsody"}


def test_showing_the_help_loads_no_command() -> None:
    loaded = _loaded_by("from rhapsody.cli import group; group.main(['--help'], standalone_mode=False)")
    assert "click" in loaded
    assert not {name for name in loaded if name.startswith("rhapsody.cli.")}
    assert "rich" not in loaded


def test_importing_any_module_starts_nothing() -> None:
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
