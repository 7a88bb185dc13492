"""The demonstration's work: what a Python source file holds, and which files this machine has.

`survey` runs inside the engine, so this module needs the standard library alone.
"""

from __future__ import annotations

import ast
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_NOT_SURVEYED: Final = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
MODULES: Final = "(single modules)"  # stands for the files that are in no package

_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS: Final = (
    *_FUNCTIONS,
    ast.ClassDef,
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.Try,
    ast.TryStar,
    ast.With,
    ast.AsyncWith,
    ast.Match,
)
_BRANCHES: Final = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.match_case)

# The number of bytes that gzip makes of the files named after it. An empty archive has 20: gzip is missing, say.
GZIP_SCRIPT: Final = 'size=$(cat -- "$@" | gzip -9 | wc -c) && test "$size" -gt 20 && echo "$size"'


class Survey(NamedTuple):
    """What is in one source file.

    Attributes:
        lines: of text.
        size: in bytes.
        functions: that are defined, methods and nested ones included.
        classes: that are defined.
        depth: blocks inside one another, at most.
        complexity: of the most complex function: one, and one for each branch in it (McCabe, 1976).
        most_complex: the name of that function; empty where there is none.
    """

    lines: int
    size: int
    functions: int
    classes: int
    depth: int
    complexity: int
    most_complex: str


def sources() -> dict[str, list[str]]:
    """Return the standard library's source files on this machine, its tests left out, by package.

    Raises:
        FileNotFoundError: there are none; some systems have the standard library compiled, or in a package of its own.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    packages: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if _NOT_SURVEYED.isdisjoint(parts):
            packages[parts[0] if len(parts) > 1 else MODULES].append(str(path))
    if not packages:
        raise FileNotFoundError(f"no source files of the standard library are in {root}")
    return dict(packages)


def survey(path: str) -> Survey:
    """Parse a source file."""
    data = Path(path).read_bytes()
    tree = ast.parse(data, filename=path)
    functions = classes = depth = complexity = 0
    most_complex = ""
    for node, level, name in _walk(tree):
        depth = max(depth, level)
        if isinstance(node, _FUNCTIONS):
            functions += 1
            branches = complexity_of(node)
            if branches > complexity:
                complexity, most_complex = branches, name
        elif isinstance(node, ast.ClassDef):
            classes += 1
    return Survey(data.count(b"\n"), len(data), functions, classes, depth, complexity, most_complex)


def complexity_of(function: ast.AST) -> int:
    """Return the cyclomatic complexity of a function, that of functions inside it included."""
    total = 1
    for node in ast.walk(function):
        if isinstance(node, _BRANCHES):
            total += 1
        elif isinstance(node, ast.BoolOp):
            total += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            total += 1 + len(node.ifs)
    return total


def _walk(tree: ast.AST) -> Iterator[tuple[ast.AST, int, str]]:
    """Yield every block with its depth and qualified name, without recursion: sources may nest deeply."""
    left: list[tuple[ast.AST, int, str]] = [(tree, 0, "")]
    while left:
        node, level, name = left.pop()
        if isinstance(node, _BLOCKS):
            level += 1
            own = getattr(node, "name", "")
            name = f"{name}.{own}" if name and own else name or own
            yield node, level, name
        left += [(child, level, name) for child in ast.iter_child_nodes(node)]
