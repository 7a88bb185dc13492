"""What is public is documented."""

from __future__ import annotations

import importlib.util
import inspect
import re
from types import ModuleType
from typing import Any

import pytest
import rhapsody.api
import rhapsody.plugin
from rhapsody import errors, hookspecs
from rhapsody.cli import COMMANDS

from .source import ROOT

HOOKS = sorted(
    {
        (kind.__name__, name)
        for kind in vars(hookspecs).values()
        if inspect.isclass(kind) and kind.__module__ == hookspecs.__name__
        for name in vars(kind)
        if name.startswith("rhapsody_")
    }
)


@pytest.fixture(scope="module")
def reference() -> str:
    """The page of hooks, as the documentation's build writes it."""
    pytest.importorskip("sphinx", reason="the documentation's build is not installed")
    path = ROOT / "docs" / "_ext" / "hooks_reference.py"
    spec = importlib.util.spec_from_file_location("hooks_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text: str = module.render()
    return text


@pytest.mark.parametrize(("kind", "name"), HOOKS)
def test_hooks_are_specified_and_listed(kind: str, name: str, reference: str) -> None:
    """Every hook is specified, and has a section in the reference."""
    hook = getattr(getattr(hookspecs, kind), name)
    assert hasattr(hook, f"{hookspecs.hookspec.project_name}_spec"), "it lacks the marker"
    section = reference.partition(f"### `{name}`\n")[2].partition("\n### ")[0]
    assert inspect.getdoc(hook).splitlines()[0].removesuffix(" Optional.") in section  # type: ignore[union-attr]  # it has a docstring


def test_hooks_page_is_current(reference: str) -> None:
    """The page of hooks in the repository equals what the hook specifications say."""
    page = ROOT / "docs" / "reference" / "hooks.md"
    assert page.read_text() == reference, "write it anew: .venv/bin/python docs/_ext/hooks_reference.py"


@pytest.mark.parametrize("name", [name for kind, name in HOOKS if kind == "BackendHooks" and "monitor" not in name])
def test_hooks_state_their_guarantees(name: str) -> None:
    """Every hook's docstring says what success and what an exception guarantee."""
    contract = inspect.getdoc(getattr(hookspecs.BackendHooks, name)) or ""
    assert re.search(r"^Returns:", contract, re.MULTILINE)
    assert re.search(r"^Raises:", contract, re.MULTILINE)


def _members(thing: Any) -> list[tuple[str, Any]]:
    return [
        (name, member)
        for name, member in vars(thing).items()
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property | classmethod))
    ]


@pytest.mark.parametrize("module", [rhapsody.api, rhapsody.plugin], ids=lambda module: module.__name__)
def test_public_names_have_docstrings(module: ModuleType) -> None:
    """Every public name and each of its methods has a docstring."""
    missing = []
    for name in module.__all__:
        thing = getattr(module, name)
        if not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        if not inspect.getdoc(thing) or (inspect.isclass(thing) and "__doc__" not in vars(thing)):
            missing.append(name)
        if inspect.isclass(thing):
            missing += [f"{name}.{key}" for key, member in _members(thing) if not inspect.getdoc(member)]
    assert not missing


@pytest.mark.parametrize(
    ("module", "page"), [(rhapsody.api, "api.md errors.md"), (rhapsody.plugin, "plugin.md api.md")],
    ids=["api", "plugin"],
)  # fmt: skip
def test_public_names_are_in_reference(module: ModuleType, page: str) -> None:
    """Every public name is in the reference."""
    text = "".join((ROOT / "docs" / "reference" / name).read_text() for name in page.split())
    text += "".join(path.read_text() for path in sorted((ROOT / "docs" / "reference").glob("capab*.md")))
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.isclass(thing) and thing.__module__ == errors.__name__:
            continue  # that page shows the whole module
        if name in ("INTERFACE_VERSION", "hookimpl", "Event"):
            continue  # a number, a marker and a union: described where they are used
        assert re.search(rf"\b{name}\b", text), f"{name} is in no page of the reference"


def test_error_tree_is_drawn_truly() -> None:
    """The tree in the docstring of `errors` is the tree of classes."""
    drawn: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^([\s│├└─]*)(\w*Error)\b", line)
        if match:
            depth, name = len(match[1]), match[2]
            while above and above[-1][0] >= depth:
                above.pop()
            drawn[name] = above[-1][1] if above else "Exception"
            above.append((depth, name))
    real = {
        name: kind.__bases__[0].__name__
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, Exception) and name.endswith("Error")
        and kind.__module__ == errors.__name__
    }  # fmt: skip
    assert drawn == real


def test_errors_are_in_the_interface() -> None:
    """Every error can be imported from `rhapsody.api`."""
    public = {
        name
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, Exception) and kind.__module__ == errors.__name__
    }
    assert public <= set(rhapsody.api.__all__)


def test_commands_are_in_reference() -> None:
    """Every command has a section in the reference."""
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text()
    assert [name for name in COMMANDS if f"## rhapsody {name}\n" not in page] == []


def test_settings_are_in_reference() -> None:
    """Every setting is in the reference."""
    page = (ROOT / "docs" / "reference" / "settings.md").read_text()
    source = (ROOT / "core" / "src" / "rhapsody" / "settings.py").read_text()
    used = set(re.findall(r"\"(RHAPSODY_[A-Z_]+)\"", source))
    assert "RHAPSODY_LOG_LEVEL" in used
    assert {name for name in used if f"\n{name}\n: " not in page} == set()
