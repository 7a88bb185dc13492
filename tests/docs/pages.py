"""The documentation's pages and what is to be run in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_BLOCK = re.compile(
    r"(?:<!--\s*not run:(?P<reason>[^>]*)-->\s*\n+)?^(?P<fence>`{3,})(?P<language>python|console|pycon)\s*\n"
    r"(?P<text>.*?)^(?P=fence)\s*$",
    re.MULTILINE | re.DOTALL,
)
_NEEDS = re.compile(r"<!--\s*needs:\s*([\w, ]+?)\s*-->")


@dataclass
class Block:
    """One fenced block of code."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None  # why it is not run


def pages() -> list[Path]:
    """Return every page that a reader may copy code from."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "core" / "README.md"]
    found += sorted(ROOT.glob("plugins/*/README.md"))
    found += sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
    return found


def name_of(page: Path) -> str:
    """Return the page's name in the repository."""
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    """Return a page's blocks of code."""
    text = page.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("text")) + 1
        reason = match["reason"]
        found.append(Block(name_of(page), line, match["language"], match["text"], reason and reason.strip()))
    return found


def needs(page: Path) -> list[str]:
    """Return the engines that the page needs: that it is about, by its name, or that it says."""
    said = {name.strip() for match in _NEEDS.finditer(page.read_text()) for name in match[1].split(",")}
    named = {
        engine for engine in ("dask", "dragon", "radical") if page.stem == engine or f"rhapsody-{engine}" in page.parts
    }
    return sorted(said | named)
