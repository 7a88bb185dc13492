"""Links between the pages of the repository lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .pages import ROOT, name_of, pages

LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)")
OTHERS = [ROOT / "CHANGELOG.md", *sorted(ROOT.glob("*/README.md"))]


@pytest.mark.parametrize("page", sorted({*pages(), *OTHERS}), ids=name_of)
def test_links_lead_to_files(page: Path) -> None:
    """Every link to a file leads to one."""
    without_code = re.sub(r"^(`{3,}).*?^\1", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = [(page.parent / link).resolve() for link in LINK.findall(without_code)]
    assert [target for target in targets if not target.exists()] == []
