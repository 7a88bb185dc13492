"""How the project's prose reads: the glossary in CONTRIBUTING, held to."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from .source import ROOT, files

# Words that are out, and what to write in their place. Docstrings, comments, messages and pages are searched; code in
# backticks and code blocks are not.
OUT = {
    r"(?<!types and )(?<!with a )\bunits?\b(?! tests?\b)": "batch",
    r"(?<!Python )\bprograms\b": "executables; scripts",
    r"\btells?\b|\btold\b|\btelling\b": "report, notify, show, warn; distinguish",
    r"\b(?:the|a|no|its|their|last|of) word (?:of|that|from|to)\b": "report, event, message, answer",
    r"\blooks?\b|\blooked\b|\blooking\b": "check, read, poll, search",
    r"\bspoil\w*": "failed, damaged, unreadable",
    r"\brous(?:e|es|ed|ing)\b": "wake, restart",
    r"\bhush\w*": "silence, suppress",
    r"\bstillborn\b": "failed to start",
    r"\bat will\b": "freely",
    r"\bdeaths?\b": "loss, end, exit, crash",
    r"\bhears?\b|\bheard\b|\bhearing\b": "receive, learn",
    r"\bin (?:its|their|whose|your|the \w+'s|\w+'s) hands?\b": "held by",
}
# Words of names (of modules, classes, functions, arguments, variables, attributes) that are out.
OUT_OF_NAMES = {
    "unit",
    "units",
    "tell",
    "tells",
    "told",
    "rouse",
    "hush",
    "stillborn",
    "spoiled",
    "deaths",
    "fate",
    "fates",
    "look",
    "looks",
    "whose",
}
KEPT_NAMES = {"units"}  # of the documented interface: Capacity(units=)
GLOSSARY = {
    "batch",
    "executable",
    "worker",
    "slot",
    "backlog",
    "capacity",
    "event",
    "outcome",
    "lost",
    "cancel",
    "drain",
    "claim",
    "withdraw",
}
_OUT = {re.compile(pattern, re.IGNORECASE): instead for pattern, instead in OUT.items()}
_CODE = re.compile(r"`[^`\n]*`|https?://\S+|\]\([^)]*\)|\[[\w/.-]+\]")
_SCRIPT = re.compile(r"^\s*(?:import|from|(?:async )?def|class) \w", re.MULTILINE)  # what a test runs, or ships
_MESSAGE = re.compile(r"\w+ \w+")  # a string of several words is read by somebody


def _of_python(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of comments, docstrings and messages, with their numbers."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    tree = ast.parse(text)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Constant) and isinstance(node.value, str) and _MESSAGE.search(node.value)):
            continue
        if id(node) in docstrings or not _SCRIPT.search(node.value):
            for offset, line in enumerate(node.value.splitlines()):
                yield node.lineno + offset, line


def _of_page(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a page outside of code blocks."""
    is_code = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code and not line.startswith("    "):
            yield number, line


def _of_comments(text: str) -> Iterator[tuple[int, str]]:
    """Yield the comments of a configuration file or of a shell's script."""
    for number, line in enumerate(text.splitlines(), 1):
        if (at := re.search(r"(?:^|\s)#", line)) is not None:
            yield number, line[at.start() :]


def prose_of(path: Path) -> list[tuple[int, str]]:
    """Return the lines of prose in a file, without the code in them."""
    read = {".py": _of_python, ".md": _of_page, ".in": _of_page}.get(path.suffix, _of_comments)
    return [(number, _CODE.sub("``", line)) for number, line in read(path.read_text(errors="replace"))]


def _files() -> dict[str, Path]:
    """Return the files with prose by their names, without this one, which has the words."""
    kinds = {".py", ".md", ".in", ".toml", ".sh", ".yml", ""}
    own = Path(__file__)
    return {str(path.relative_to(ROOT)): path for path in files() if path.suffix in kinds and path != own}


def offences(path: Path) -> list[str]:
    """Return the words of a file that are out, each with its line and what to write."""
    return [
        f"{path.relative_to(ROOT)}:{number}: {match[0]!r} (write: {instead}): {line.strip()}"
        for number, line in prose_of(path)
        for pattern, instead in _OUT.items()
        for match in pattern.finditer(line)
    ]


def names_of(path: Path) -> list[tuple[int, str]]:
    """Return the names that a module defines: itself, classes, functions, arguments, variables and attributes."""
    found = [(0, path.stem)]
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.append((node.lineno, name))
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.Attribute(attr=name, ctx=ast.Store()):
                found.append((node.lineno, name))
    return found


def _odd_names(path: Path) -> list[str]:
    found = []
    for number, name in names_of(path):
        words = set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))
        if words & OUT_OF_NAMES and name not in KEPT_NAMES and not name.startswith("test_"):
            found.append(f"{path.relative_to(ROOT)}:{number}: the name {name!r}")
    return found


def test_words_that_are_out() -> None:
    """No docstring, comment, message, page or name has a word that the glossary replaces."""
    assert not [
        line
        for path in _files().values()
        for line in offences(path) + (_odd_names(path) if path.suffix == ".py" else [])
    ]


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ('"""Tells the session."""', True),
        ("x = 1  # the unit has ended", True),
        ('raise ValueError("no worker heard of it")', True),
        ('"""Types and units, `unit`."""', False),
        ('script = """\nimport time\n# the unit\n"""', False),
    ],
)
def test_prose_is_read(text: str, is_found: bool, tmp_path: Path) -> None:
    """Docstrings, comments and messages are read; code in backticks and scripts are not."""
    (tmp_path / "module.py").write_text(text)
    lines = [line for _, line in prose_of(tmp_path / "module.py")]
    assert any(pattern.search(line) for line in lines for pattern in _OUT) is is_found


def test_glossary_has_the_terms() -> None:
    """The glossary in CONTRIBUTING defines each term."""
    terms = re.findall(r"^\| (\w+) \| \w", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert set(terms) >= GLOSSARY
