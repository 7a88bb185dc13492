"""Sphinx builds the documentation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .pages import ROOT


@pytest.mark.engine("dask")  # the reference shows the classes of all plugins
@pytest.mark.engine("dragon")
@pytest.mark.engine("radical")
def test_documentation_builds(tmp_path: Path) -> None:
    """Sphinx builds every page without a warning."""
    pytest.importorskip("sphinx", reason="the documentation's build is not installed")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-q",
            "-W",
            "--keep-going",
            "-d",
            tmp_path / "cache",
            "docs",
            tmp_path / "html",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    sources = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    built = {path.relative_to(tmp_path / "html").with_suffix("") for path in (tmp_path / "html").rglob("*.html")}
    assert {source for source in sources if source.parts[0] != "_build"} <= built
    assert Path("reference/hooks") in built
