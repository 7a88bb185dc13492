"""The project's source, as the contracts read it."""

from __future__ import annotations

import ast
import subprocess
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "core" / "src"
PLUGINS = sorted(path for path in (ROOT / "plugins").iterdir() if (path / "pyproject.toml").exists())


@dataclass(frozen=True)
class Module:
    """One module."""

    path: Path
    name: str

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=str(self.path))

    def imports(self, *, at_run_time: bool = False) -> set[str]:
        """Return the modules that it imports, wherever in it; with `at_run_time` not those for type checkers."""
        found: set[str] = set()
        package = self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]
        left: list[ast.AST] = [self.tree]
        while left:
            node = left.pop()
            if at_run_time and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                left += node.orelse
                continue
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found |= _targets(node, package)
            left += ast.iter_child_nodes(node)
        return found


def _targets(node: ast.ImportFrom, package: str) -> set[str]:
    base = node.module or ""
    if node.level:
        parts = package.split(".")
        base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
    # `from rhapsody import api` imports a module, `from rhapsody.api import Session` a name of one
    found = {f"{base}.{alias.name}" for alias in node.names if _is_module(f"{base}.{alias.name}")}
    return found if len(found) == len(node.names) else found | {base}


def _is_module(name: str) -> bool:
    folders = [source.joinpath(*name.split(".")) for source in (CORE, *(plugin / "src" for plugin in PLUGINS))]
    return any(folder.with_suffix(".py").exists() or (folder / "__init__.py").exists() for folder in folders)


@cache
def modules(source: Path) -> list[Module]:
    """Return the modules under a `src` folder."""
    found = []
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        found.append(Module(path, ".".join(parts[:-1] if parts[-1] == "__init__" else parts)))
    return found


def core_modules() -> list[Module]:
    """Return the modules of the core."""
    return modules(CORE)


def all_modules() -> list[Module]:
    """Return the modules of every distribution."""
    return [module for source in (CORE, *(plugin / "src" for plugin in PLUGINS)) for module in modules(source)]


def files() -> list[Path]:
    """Return the text files that belong to the project: what git holds, or would."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and path.suffix not in (".png", ".svg", ".pdf")]
