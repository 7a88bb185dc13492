"""Writes `reference/hooks.md` from the hook specifications: with the documentation, or run as a script."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rhapsody.hookspecs import BackendHooks, ObserverHooks
from rhapsody.seam.calls import REQUIRED
from rhapsody.seam.checks import AWAITED
from sphinx.application import Sphinx

_INTRODUCTION = """# Hooks

This page is made from `rhapsody.hookspecs`; [the architecture](../explanation/architecture.md) says why the hooks are
these. An implementation is a method with the marker `rhapsody.plugin.hookimpl`, and may leave out arguments that it
does not use. Where it says so, a hook may be `async def`; the others are called and not awaited, and an `async def` is
refused when the backend or the observer is taken in. Hooks are called for batches of tasks, never for single ones.
"""


def hooks_of(specification: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the hooks of a class of specifications, in the order in which they are written."""
    for name, function in vars(specification).items():
        if hasattr(function, "rhapsody_spec"):
            yield name, function


def render() -> str:
    """Return the page."""
    parts = [_INTRODUCTION]
    for specification in (BackendHooks, ObserverHooks):
        kind = "a backend" if specification is BackendHooks else "an observer"
        parts.append(f"## The hooks of {kind}\n\n{_prose(specification)}")
        parts += [_section(name, function) for name, function in hooks_of(specification)]
    return "\n".join(parts)


def _section(name: str, function: Callable[..., Any]) -> str:
    need = "Required" if name in REQUIRED else "Optional"
    need += "; may be `async def`." if name in AWAITED else "."
    signature = str(inspect.signature(function)).replace("(self, ", "(").replace("(self)", "()").replace("'", "")
    return f"### `{name}`\n\n```{{code-block}} python\n{name}{signature}\n```\n\n*{need}*\n\n{_prose(function)}"


def _prose(documented: Any) -> str:
    """Return a docstring as Markdown, with a paragraph of its own for `Returns:` and for `Raises:`."""
    text = (inspect.getdoc(documented) or "").replace(" Optional.\n", "\n")
    if not text:
        raise ValueError(f"{documented.__qualname__} has no docstring")
    return re.sub(r"^(Returns|Raises):", r"\n**\1:**", text, flags=re.MULTILINE) + "\n"


def _write(app: Sphinx) -> None:
    write(Path(app.srcdir) / "reference" / "hooks.md")


def write(page: Path) -> None:
    """Write the page, where it is not up to date."""
    text = render()
    if not page.exists() or page.read_text() != text:
        page.write_text(text)


def _keep_drawings(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Show what a module's docstring indents as it is drawn: the docstrings are written as Markdown."""
    if what != "module":
        return
    drawn: list[str] = []
    for number, line in enumerate(lines):
        if line.startswith("    ") and number and not lines[number - 1] and not drawn[-1].startswith("    "):
            drawn += ["::", ""]
        drawn.append(line)
    lines[:] = drawn


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("builder-inited", _write)
    app.connect("autodoc-process-docstring", _keep_drawings, priority=100)
    return {"parallel_read_safe": True}


if __name__ == "__main__":
    write(Path(__file__).parents[1] / "reference" / "hooks.md")
