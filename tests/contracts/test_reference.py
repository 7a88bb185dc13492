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
        if not name.startswith("_")
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
def test_every_hook_is_specified_and_has_a_section_in_the_reference(kind: str, name: str, reference: str) -> None:
    hook = getattr(getattr(hookspecs, kind), name)
    assert hasattr(hook, f"{hookspecs.hookspec.project_name}_spec"), "it lacks the marker"
    section = reference.partition(f"### `{name}`\n")[2].partition("\n### ")[0]
    assert inspect.getdoc(hook).splitlines()[0].removesuffix(" Optional.") in section  # type: ignore[union-attr]  # it has a docstring


@pytest.mark.parametrize("name", [name for kind, name in HOOKS if kind == "BackendHooks" and "monitor" not in name])
def test_every_hook_of_a_backend_says_what_success_and_what_an_exception_guarantee(name: str) -> None:
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
def test_every_public_name_has_a_docstring_and_so_have_its_methods(module: ModuleType) -> None:
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
def test_every_public_name_is_in_the_reference(module: ModuleType, page: str) -> None:
    text = "".join((ROOT / "docs" / "reference" / name).read_text() for name in page.split())
    text += "".join(path.read_text() for path in sorted((ROOT / "docs" / "reference").glob("capab*.md")))
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.isclass(thing) and thing.__module__ == errors.__name__:
            continue  # that page shows the whole module
        if name in ("INTERFACE_VERSION", "hookimpl", "Event"):
            continue  # a number, a marker and a union: described where they are used
        assert re.search(rf"\b{name}\b", text), f"{name} is in no page of the reference"


def test_the_drawing_of_the_errors_is_their_real_tree() -> None:
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


def test_every_error_can_be_imported_from_the_interface() -> None:
    public = {
        name
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, Exception) and kind.__module__ == errors.__name__
    }
    assert public <= set(rhapsody.api.__all__)


def test_every_command_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text()
    assert [name for name in COMMANDS if f"## rhapsody {name}\n" not in page] == []


def test_every_setting_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "settings.md").read_text()
    source = (ROOT / "core" / "src" / "rhapsody" / "settings.py").read_text()
    used = set(re.findall(r"\"(RHAPSODY_[A-Z_]+)\"", source))
    assert "RHAPSODY_LOG_LEVEL" in used
    assert {name for name in used if f"\n{name}\n: " not in page} == set()
