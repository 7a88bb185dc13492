"""The README's table of backends is what the backends declare."""

from __future__ import annotations

import re

import pytest
from rhapsody.api import available_backends, get_backend
from rhapsody.seam.discovery import KNOWN

from .pages import ROOT

ROW = re.compile(r"^\| `(?P<name>\w+)` \| `(?P<distribution>[\w-]+)` \| [^|]+ \| (?P<cells>.+) \|$", re.MULTILINE)
ROWS = {match["name"]: match for match in ROW.finditer((ROOT / "README.md").read_text())}
ENGINES = {name: name.partition("_")[0] for name in ROWS}


def test_readme_has_every_backend() -> None:
    """The README has every first-party backend."""
    aliases = {"dragon_v3": "dragon", "radical_pilot": "radical"}
    assert {aliases.get(name, name) for name in (*KNOWN, "concurrent")} == set(ROWS)
    assert {name: match["distribution"] for name, match in ROWS.items() if name in KNOWN} == {
        name: KNOWN[name][0] for name in ROWS if name in KNOWN
    }


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.engine(engine)) for name, engine in ENGINES.items()]
)
def test_readme_states_capabilities(name: str) -> None:
    """The README's row of a backend is what it declares."""
    if name not in {info.name for info in available_backends() if info.installed}:
        pytest.skip(f"the distribution of {name} is not installed")
    can = get_backend(name).capabilities
    said = ROWS[name]["cells"].split(" | ")
    declared = [can.functions, can.executables, can.ranks, can.gpus, can.cancel_functions]
    if name == "concurrent":
        assert get_backend(name, executor="processes").capabilities.cancel_functions
        assert said.pop() == "in processes"
        assert not declared.pop()
    assert said == ["yes" if one else "no" for one in declared]
