"""Distributions that are installed for one test."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rhapsody.api import available_backends

SOUND = """
    import asyncio
    from rhapsody.plugin import BackendCapabilities, Capacity, ExecutionBackend, Outcome, TaskState, hookimpl

    class Backend(ExecutionBackend):
        def __init__(self, name="good", colour="red"):
            super().__init__(name)
        @hookimpl
        def rhapsody_init(self, context):
            self.context = context
        @hookimpl
        def rhapsody_submit(self, batch):
            self.context.events.put([Outcome(task.uid, TaskState.DONE, return_value="good") for task in batch.tasks])
        @hookimpl
        def rhapsody_shutdown(self):
            pass
"""


Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Give what installs a distribution: a metadata folder and a module, in a folder on the path."""
    site = tmp_path / "site"
    site.mkdir()
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))

    def install(
        distribution: str,
        source: str,
        name: str = "hostile",
        version: str = "1.2.3",
        target: str | None = None,
        entry_points: str | None = None,
    ) -> Path:
        module = distribution.replace("-", "_")
        (site / f"{module}.py").write_text(textwrap.dedent(source))
        info = site / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "RECORD").write_text(f"{module}.py,,\n")
        (info / "entry_points.txt").write_text(
            entry_points or f"[rhapsody.backends]\n{name} = {target or f'{module}:Backend'}\n"
        )
        return site / f"{module}.py"

    yield install
    for module in set(sys.modules) - before:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(site)):
            del sys.modules[module]


def listed(name: str) -> bool:
    return any(info.name == name for info in available_backends())
